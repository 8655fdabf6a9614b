"""``aegpo report``: one HTML page about a run, or about several side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from aegpo.utilities.files import replacing
from aegpo.utilities.names import tag_name
from aegpo.utilities.page.page import Section, frames, heading, table, to_html
from lightning_modules.arguments.parser import OneLineParser
from lightning_modules.commands.report import figures
from lightning_modules.commands.report.figures import figure
from lightning_modules.commands.report.run_files import (
    TABLES,
    RunFiles,
    decided,
    prompt_texts,
    read_run,
    run_names,
    table_rows,
)
from lightning_modules.commands.report.settings import changed_settings, side_by_side

PAGE = "report.html"
MARK = "<!-- written by aegpo report"
"""Beginning of every page, by which the next one knows that it may replace it."""
MOST_PROMPTS = 40
"""Rows of the table of prompts: half of them with the highest ΔEntropy, half with the lowest."""
_HEADERS = {
    "allocation/prompts": ("prompt", "latest ΔEntropy", "visits", "images a visit"),
    "entropy/prompts": ("prompt", "ΔEntropy"),
}
_WHAT = {
    "allocation/prompts": "the prompts with the highest ΔEntropy and the lowest of those visited",
    "entropy/prompts": "the prompts of that batch",
}


def main(args: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line and status 2.

    Args:
        args: Arguments after `report` instead of those of the process.
    """
    parser = OneLineParser(
        prog="aegpo report",
        usage="aegpo report RUN [RUN ...] [--out FILE]",
        description=(
            "One HTML page about a run, or about several side by side, from what they left in "
            "their log folders. It needs no network and no other file."
        ),
    )
    parser.add_argument("runs", nargs="+", help="log folders of runs, such as runs/shapes")
    parser.add_argument(
        "--out",
        type=str | None,
        help=f"the page; {PAGE} in the folder of the first run if left out",
    )
    parsed = parser.parse_args(sys.argv[2:] if args is None else args)
    folders = [Path(folder).expanduser() for folder in parsed.runs]
    out = Path(parsed.out).expanduser() if parsed.out else folders[0] / PAGE
    try:
        if len(set(folders)) < len(folders):
            raise ValueError("a run is named twice; give each once")
        # Settings are compared with defaults, for which all their classes are imported: seconds.
        print(f"reading {', '.join(map(str, folders))}", flush=True)
        runs = [read_run(*one) for one in zip(folders, run_names(folders), strict=True)]
        if out.is_dir() or (out.exists() and not out.read_bytes().startswith(MARK.encode())):
            raise ValueError(f"{out} is no page of aegpo report and stays; name another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            title = ", ".join(run.name for run in runs)
            partial.write_bytes(to_html(title, sections(runs), f"{MARK}, which replaces it -->"))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB)")


def sections(runs: Sequence[RunFiles]) -> list[Section]:
    """Lay the page out.

    Args:
        runs: The runs, each shown in the same way.

    Returns:
        Its sections; some are empty.
    """
    return [
        scores(runs),
        alarms(runs),
        *(samples(run, len(runs) > 1) for run in runs),
        *(entropy(run, len(runs) > 1) for run in runs),
        *(prompts(run, len(runs) > 1) for run in runs),
        training(runs),
        cost(runs),
        config(runs),
        environment(runs),
    ]


def scores(runs: Sequence[RunFiles]) -> Section:
    """Held-out scores: before, after, best, and their curves."""
    tags = dict.fromkeys(
        tag for run in runs for tag in run.scalars if tag.startswith("val/") and tag.count("/") == 1
    )
    section = Section("Held-out scores")
    rows = []
    for tag in (tag for tag in tags if tag != "val/missing"):
        for run in runs:
            values = run.series(tag)
            if not values:
                continue
            first, last = values[min(values)], values[max(values)]
            best = max(values, key=lambda when: (values[when], when))
            rows.append(
                [
                    *([run.name] if len(runs) > 1 else []),
                    tag_name(tag.removeprefix("val/")),
                    *(f"{value:.3f}" for value in (first, last)),
                    f"{last - first:+.3f}",
                    f"{values[best]:.3f} after {best:,}",
                ]
            )
    header = ["run"] if len(runs) > 1 else []
    header += ["reward", "before", "after", "change", "best"]
    section.parts.append(table(header, rows, words=len(header) - 4))
    for tag in (tag for tag in tags if tag != "val/missing"):
        name = tag_name(tag.removeprefix("val/"))
        part = figure(figures.draw_score(runs, tag), f"{name} against evaluations and time")
        section.parts += [heading(name), part]
        if len(runs) == 1:
            drawn = figures.draw_by_category(runs[0], tag.removeprefix("val/"))
            if drawn is not None:
                section.parts.append(figure(drawn, f"{name} by category"))
    return section if rows else Section("Held-out scores", "No held-out score was logged.")


def alarms(runs: Sequence[RunFiles]) -> Section:
    """What `callbacks.HackingAlarm` said."""
    section = Section("Alarms")
    watched = [run for run in runs if run.series("alarm/raised")]
    for run in watched:
        raised = [when for when, count in sorted(run.series("alarm/raised").items()) if count > 0]
        of = f" in {run.name}" if len(runs) > 1 else ""
        said = f"none was raised{of}"
        if raised:
            section.alarm = True
            said = f"raised{of} at {len(raised)} evaluations, first after {raised[0]:,} iterations"
        section.note += f"{said}. "
        rows = [
            [tag_name(tag.removeprefix("alarm/")), f"{run.last(tag):.3g}"]
            for tag in sorted(run.scalars)
            if tag.startswith("alarm/") and tag != "alarm/raised"
        ]
        section.parts.append(table(["distance", f"latest{of}"], rows))
    return section


def samples(run: RunFiles, several: bool) -> Section:
    """Held-out images over time."""
    section = Section(f"Samples{_of(run, several)}")
    if grid := run.pictures.get("samples/held_out"):
        section.note = "The same prompts from the same noise; below each its scores and prompt."
        section.parts.append(frames(grid, "held-out images"))
    return section


def entropy(run: RunFiles, several: bool) -> Section:
    """Entropy(t), the steps chosen by it, and layer by step."""
    section = Section(f"Entropy{_of(run, several)}")
    if drawn := run.pictures.get("entropy/curve"):
        title = "Entropy(t) now, at the start and of the reference; bars are the steps that explore"
        section.parts.append(frames(drawn, title))
    if run.decisions:
        part = figure(figures.draw_decisions(run.decisions), "Entropy(t) and chosen steps")
        section.parts.append(part)
    if drawn := run.pictures.get("entropy/by_layer"):
        section.parts.append(frames(drawn, "attention entropy, layer by step"))
    return section


def prompts(run: RunFiles, several: bool) -> Section:
    """ΔEntropy and budgets by prompt."""
    section = Section(f"Prompts{_of(run, several)}")
    known = decided(run.decisions)
    if known:
        texts = prompt_texts(run)
        section.note = "From decisions.jsonl of callbacks.DecisionLog, all visits."
        order = sorted(known, key=lambda row: -(known[row]["delta"] or 0))
        shown = order
        if len(order) > MOST_PROMPTS:
            shown = [*order[: MOST_PROMPTS // 2], *order[-MOST_PROMPTS // 2 :]]
            shown_of = f"{MOST_PROMPTS} of {len(order)} prompts"
            section.note += f" {shown_of}: the highest ΔEntropy and the lowest."
        rows = [
            [
                texts.get(row, f"row {row}"),
                "" if known[row]["delta"] is None else f"{known[row]['delta']:.5f}",
                f"{known[row]['visits']}",
                f"{known[row]['images'] / known[row]['visits']:.1f}",
            ]
            for row in shown
        ]
        section.parts.append(table(_HEADERS["allocation/prompts"], rows))
    elif latest := next((tag for tag in TABLES if tag in run.tables), None):
        when, table_of_run = run.tables[latest]
        header = _HEADERS[latest]
        section.note = (
            f"From the table {latest} of callbacks.CurveLogger after {when:,} iterations, "
            f"{_WHAT[latest]}; callbacks.DecisionLog notes every decision."
        )
        section.parts.append(table(header, table_rows(table_of_run)))
    return section


def training(runs: Sequence[RunFiles]) -> Section:
    """How the training went, number by number."""
    section = Section("Training")
    for tag, title in figures.STEERING.items():
        if any(run.series(tag) for run in runs):
            section.parts += [
                heading(f"{title} ({tag})"),
                figure(figures.draw_score(runs, tag), title),
            ]
    return section


def cost(runs: Sequence[RunFiles]) -> Section:
    """What was spent on what."""
    section = Section("Cost")
    rows = [["iterations", *(f"{max(run.series('reward/mean'), default=0):,}" for run in runs)]]
    kinds = dict.fromkeys(
        tag
        for prefix in ("cost/", "seconds/", "memory/")
        for run in runs
        for tag in run.scalars
        if tag.startswith(prefix)
    )
    for tag in kinds:
        cells = [_spent(run, tag) for run in runs]
        rows.append([tag.replace("cost/", "").replace("/", " "), *cells])
    if len(rows) > 1:
        note = "Model evaluations by purpose; seconds are of all iterations together."
        section.parts.append(table(("", *(run.name for run in runs)), rows, note))
    return section


def _spent(run: RunFiles, tag: str) -> str:
    value = run.last(tag)
    if value is None:
        return ""
    if tag.startswith("seconds/"):
        return f"{sum(run.series(tag).values()):,.0f}"
    return f"{value:,.2f}" if tag.startswith(("memory/", "cost/per_")) else f"{value:,.0f}"


def config(runs: Sequence[RunFiles]) -> Section:
    """What differs from the defaults, and between the runs."""
    section = Section("Config")
    laid = side_by_side([changed_settings(run.config) for run in runs])
    header = ("setting", *(run.name for run in runs))
    width = len(header)
    apart = [[key, *values] for key, values in laid.items() if len(set(values)) > 1]
    if apart:
        section.parts.append(table(header, apart, "where the runs differ", words=width))
    if laid:
        rows = [[key, *values] for key, values in laid.items()]
        title = "what differs from the defaults"
        section.parts.append(table(header, rows, title, words=width, folded=True))
    return section


def environment(runs: Sequence[RunFiles]) -> Section:
    """Versions and machines."""
    section = Section("Environment")
    laid = side_by_side([run.environment for run in runs])
    if laid:
        header = ("", *(run.name for run in runs))
        rows = [[key, *values] for key, values in laid.items()]
        section.parts.append(table(header, rows, words=len(header)))
    return section


def _of(run: RunFiles, several: bool) -> str:
    return f": {run.name}" if several else ""
