"""Does all of it work on this card? One table, in at most eight minutes: `make gpu`.

    python benchmarks/gpu_check.py                          # everything
    python benchmarks/gpu_check.py --parts families-fp32 full-24gb
    python benchmarks/gpu_check.py --parts full-80gb --items sd35_medium flux1_dev
    python benchmarks/gpu_check.py --cap-gib 24             # no part may take more of the card
    python benchmarks/gpu_check.py --tiny                   # the same path in minutes, on a CPU

Every part runs in a process of its own with a time limit: one that raises, hangs or dies costs its
own rows and the status, which is 1 if anything failed. Rows appear as they come; the table and a
JSON file with card and versions stand at the end. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu.parts import PARTS, Part, Settings
from gpu.runner import Row, run_parts
from machine import describe_machine
from rich.console import Console

from aegpo.utilities.tables import markdown_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the parts and print the table.

    Returns:
        0 if all that has a verdict passed, else 1.
    """
    options = _parse(arguments)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if options.list:
        for part in PARTS:
            console.print(f"{part.name}: {part.says}\n    {' '.join(part.items)}")
        return 0
    machine = describe_machine(options.tiny)
    if machine["card"] is None and not options.tiny:
        console.print(
            "error: torch sees no CUDA device; --tiny tries the same path on the CPU, "
            "`aegpo doctor` says more"
        )
        return 1
    console.print(f"{machine['card'] or machine['processor']}, {_versions(machine)}")
    parts = _chosen(options.parts, options.items)
    settings = Settings(options.tiny, options.cap_gib)
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        console.print(_line(row))
        if options.json is not None:  # also complete as far as it goes when cut short
            text = json.dumps({**machine, "rows": [asdict(one) for one in rows]}, indent=1)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(text + "\n")

    minutes = options.minutes or (60.0 if options.tiny else 8.0)
    run_parts(parts, settings, 60 * minutes, tell)
    console.print(f"\n{summary(rows)}\n")
    failed = sum(row.ok is False for row in rows)
    passed = sum(row.ok is True for row in rows)
    console.print(f"{passed} checks passed, {failed} failed")
    return 1 if failed or not passed else 0


def summary(rows: Sequence[Row]) -> str:
    """Lay the rows out as Markdown, a line an item: what passed, what did not, and its figures."""
    lines = []
    for part, item in dict.fromkeys((row.part, row.item) for row in rows):
        own = [row for row in rows if (row.part, row.item) == (part, item)]
        good = [row for row in own if row.ok is True]
        bad = [f"{row.check}: {_shown(row.value)}" for row in own if row.ok is False]
        figures = [f"{row.check} {_shown(row.value)}" for row in own if row.check != "seconds"]
        seconds = next((_shown(row.value) for row in own if row.check == "seconds"), "")
        verdict = "; ".join(["FAILED", *bad]) if bad else f"{len(good)} ok"
        lines.append([part, item, verdict, "; ".join(figures), seconds])
    header = ["part", "item", "verdict", "what was measured", "seconds"]
    return markdown_table(header, lines, text_columns=4)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--items", nargs="+", help="only these items of the parts")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--tiny", action="store_true", help="small networks, on the CPU")
    parser.add_argument("--cap-gib", type=float, help="memory that any item may take of the card")
    parser.add_argument(
        "--minutes", type=float, help="for all parts together; 8, or 60 with --tiny"
    )
    parser.add_argument("--json", type=Path, help="file for the rows; kept up to date")
    return parser.parse_args(arguments)


def _chosen(names: Sequence[str], items: Sequence[str] | None) -> list[Part]:
    chosen = [part for part in PARTS if part.name in names]
    if items is None:
        return chosen
    known = {item for part in chosen for item in part.items}
    if not set(items) <= known:
        raise SystemExit(f"error: --items {' '.join(items)}; there are {' '.join(sorted(known))}")
    kept = [
        replace(part, items=tuple(item for item in part.items if item in items)) for part in chosen
    ]
    return [part for part in kept if part.items]


def _versions(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in machine["versions"].items())


def _line(row: Row) -> str:
    wanted = f" (wanted {row.wanted})" if row.wanted else ""
    return f"{_mark(row):6} {row.part} {row.item}: {row.check} {_shown(row.value)}{wanted}"


def _mark(row: Row) -> str:
    return {True: "ok", False: "FAILED", None: ""}[row.ok]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
