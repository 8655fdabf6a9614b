"""Writes the tables of `aegpo signals` as Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from aegpo.study.rank_correlation import chance_level, spearman
from aegpo.study.signal_probe import Signals
from aegpo.study.signal_tables import (
    PromptRow,
    StepRow,
    StepTable,
    delta_by_prompt,
    prompt_table,
    step_table,
)
from aegpo.study.step_trials import group_spread
from aegpo.utilities.tables import finite, markdown_table, write_csv

STEP_COLUMNS = ("tokens", "layer", "rho", "own rho", "steps", "share", "own share")
"""Columns of the first table before those of the steps."""

PROMPT_COLUMNS = {
    "tokens": "tokens",
    "layer": "layer",
    "mean": "mean",
    "retest_one": "retest 1",
    "retest_half": "retest half",
    "retest_half_within": "within",
    "spread": "spread",
    "spread_within": "within",
    "gained": "gained",
    "gained_within": "within",
    "foretold": "foretold",
    "foretold_within": "within",
}
"""Columns of the second table by field of `PromptRow`."""

NOT_TRAINED = (
    "Without a checkpoint the policy is the reference: ΔEntropy is 0 for every prompt and nothing "
    "was gained, so there is no second table. Give --ckpt_path to see it."
)

DIGITS = 6
"""Places after the point in the files for programs."""


@dataclass(frozen=True)
class Report:
    """The two tables with what they were measured on.

    Attributes:
        signals: The measurements.
        steps: The first table.
        prompts: The second one; None for a policy that was not trained.
        settings: What was asked for, written down with the tables.
    """

    signals: Signals
    steps: StepTable
    prompts: list[PromptRow] | None
    settings: Mapping[str, Any]

    @property
    def step_notes(self) -> list[str]:
        """What a reader of the first table has to know."""
        table, oracle = self.steps, _steps(self.steps.oracle_steps)
        level = chance_level(len(table.spread))
        notes = [
            f"Best steps by the reward itself: {oracle}. Chosen for each prompt by the "
            f"others, they hold {_percent(table.oracle_share)} of the summed reward variance; "
            f"as many steps at random {table.random_share:.0%}.",
            f"Over {len(table.spread)} steps unrelated numbers pass |rho| = {level:.2f} once in "
            "twenty times; smooth curves, and the best of many rows, more often.",
        ]
        return notes + [f"Skipped {name}: {why}." for name, why in self.signals.skipped.items()]

    @property
    def prompt_notes(self) -> list[str]:
        """What a reader of the second table has to know."""
        if self.prompts is None:
            return [NOT_TRAINED]
        half = next(iter(self.signals.curves.values())).shape[1] // 2
        count = len(self.signals.prompts)
        return [
            f"Retest: one trajectory against another, and averages of {half} against {half}. "
            f"Over {count} prompts chance passes |rho| = {chance_level(count):.2f} once in twenty"
            f"{self._chance_within()}."
        ]

    def _chance_within(self) -> str:
        """The level of the columns within categories: of all values in the table."""
        names = [field.name for field in fields(PromptRow) if field.name.endswith("_chance")]
        levels = [getattr(row, name) for row in self.prompts or [] for name in names]
        known = [level for level in levels if not math.isnan(level)]
        if not known:
            return ""
        ends = dict.fromkeys(f"{level:.2f}" for level in (min(known), max(known)))
        return f", within categories |rho| = {' to '.join(ends)} (permuted inside them)"

    @property
    def cost(self) -> str:
        """Model evaluations, in words."""
        spent = {name: number for name, number in self.signals.evaluations.items() if number}
        parts = ", ".join(f"{number:,} {name}" for name, number in spent.items())
        return f"{sum(spent.values()):,} model evaluations ({parts})"

    def step_rows(self) -> list[list[str]]:
        """The first table's cells: `STEP_COLUMNS`, then one column per step."""
        rows = []
        for row in self.steps.rows:
            cells = [row.tokens, row.layer, _signed(row.correlation), _signed(row.own_correlation)]
            cells += [_steps(row.steps), f"{row.share:.0%}", _percent(row.own_share)]
            rows.append(cells + ["–" if math.isnan(v) else f"{v:.3f}" for v in row.entropy])
        return rows

    def prompt_fields(self) -> list[str]:
        """Fields of the second table that are known for some row."""
        rows = self.prompts or []
        return [
            name
            for name in PROMPT_COLUMNS
            if any(isinstance(v := getattr(row, name), str) or not math.isnan(v) for row in rows)
        ]

    def prompt_rows(self) -> list[list[str]]:
        """The second table's cells, one for each of `prompt_fields`."""
        names = self.prompt_fields()
        return [[_cell(name, getattr(row, name)) for name in names] for row in self.prompts or []]


def make_report(signals: Signals, top_k: int, settings: Mapping[str, Any]) -> Report:
    """Make both tables.

    Args:
        signals: The measurements.
        top_k: Steps that every reading chooses.
        settings: What was asked for.

    Returns:
        The report.
    """
    steps = step_table(signals, top_k)
    if signals.agreement is not None:
        steps = replace(
            steps, rows=[_agreement_row(signals, signals.agreement, top_k), *steps.rows]
        )
    return Report(signals, steps, prompt_table(signals), dict(settings))


def _agreement_row(signals: Signals, agreement: Tensor, top_k: int) -> StepRow:
    """The first table's row of the gradients' agreement: one curve for all prompts."""
    spread = signals.step_spread[signals.step_spread.isfinite().all(dim=1)].double()
    variance = spread.square().sum(dim=0)
    order = agreement.nan_to_num(-math.inf).argsort(descending=True, stable=True)
    steps = order[:top_k].sort().values
    return StepRow(
        tokens="gradient agreement",
        layer="",
        entropy=[*agreement.tolist(), math.nan],
        correlation=spearman(agreement, spread.mean(dim=0)),
        own_correlation=math.nan,
        steps=steps.tolist(),
        share=float(variance[steps].sum() / variance.sum()),
        own_share=math.nan,
    )


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``signals.md``, ``steps.csv``, ``prompts.csv`` (if there is one) and ``signals.json``.

    Args:
        report: The tables.
        folder: Created if absent; earlier files of these names are replaced.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, everything = folder / "signals.md", folder / "signals.json"
    steps, prompts = folder / "steps.csv", folder / "prompts.csv"
    page.write_text("\n".join(_page(report)) + "\n", encoding="utf-8")
    header, rows = _step_csv(report.steps)
    write_csv(steps, header, finite(rows, DIGITS))
    prompts.unlink(missing_ok=True)
    if report.prompts is not None:
        names = [field.name for field in fields(PromptRow)]
        values = [[getattr(row, name) for name in names] for row in report.prompts]
        write_csv(prompts, names, finite(values, DIGITS))
    text = json.dumps(finite(_everything(report), DIGITS), ensure_ascii=False, indent=1)
    everything.write_text(text + "\n", encoding="utf-8")
    return [page, steps, *([prompts] if report.prompts is not None else []), everything]


def _page(report: Report) -> list[str]:
    """Both tables and their notes, as lines of Markdown."""
    steps = report.steps
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    lines = ["# What entropy predicts", "", f"{settings}.", f"{report.cost}.", "", "## By step", ""]
    spread = ["reward spread", "", "", "", _steps(steps.oracle_steps), _percent(steps.oracle_share)]
    spread += ["", *(f"{value:.3f}" for value in steps.spread), "–"]
    header = [*STEP_COLUMNS, *map(str, range(len(steps.spread) + 1))]
    lines.append(markdown_table(header, [spread, *report.step_rows()], text_columns=2))
    lines += ["", *report.step_notes, "", "## By prompt", ""]
    if report.prompts is not None:
        columns = [PROMPT_COLUMNS[name] for name in report.prompt_fields()]
        lines += [markdown_table(columns, report.prompt_rows(), text_columns=2), ""]
    return lines + report.prompt_notes


def _step_csv(table: StepTable) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of ``steps.csv``; the reward's spread comes first."""
    names = ["tokens", "layer", "correlation", "own_correlation", "steps", "share", "own_share"]
    header = [*names, *(f"entropy_{step}" for step in range(len(table.spread) + 1))]
    first = ["reward_spread", "", "", "", _steps(table.oracle_steps), table.oracle_share, ""]
    rows: list[list[Any]] = [[*first, *table.spread, ""]]
    for row in table.rows:
        chosen = [row.tokens, row.layer, row.correlation, row.own_correlation, _steps(row.steps)]
        rows.append([*chosen, row.share, row.own_share, *row.entropy])
    return header, rows


def _everything(report: Report) -> dict[str, Any]:
    """Both tables and the measurements behind them."""
    signals = report.signals
    prompts: dict[str, Any] = {
        "prompt": signals.prompts.prompts,
        "index": signals.prompts.index.tolist(),
        "category": [record.get("category", "all") for record in signals.prompts.metadata],
        "step_spread": signals.step_spread.tolist(),
        "reward_mean": signals.groups.double().nanmean(dim=1).tolist(),
        "reward_spread": group_spread(signals.groups).tolist(),
    }
    if signals.before_groups is not None:
        prompts["reward_spread_before"] = group_spread(signals.before_groups).tolist()
    if signals.gains is not None:
        prompts["reward_gained"] = signals.gains.double().nanmean(dim=1).tolist()
    if signals.reference_curves is not None:
        prompts["delta"] = _named(delta_by_prompt(signals.curves, signals.reference_curves))
        if signals.before_curves is not None:
            before = delta_by_prompt(signals.before_curves, signals.reference_curves)
            prompts["delta_before"] = _named(before)
    return {
        "settings": dict(report.settings),
        "evaluations": signals.evaluations,
        "skipped": signals.skipped,
        "steps": report.steps,
        "prompts": report.prompts,
        "by_prompt": prompts,
    }


def _named(values: Mapping[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    return [{"tokens": key[0], "layer": key[1], "values": row} for key, row in values.items()]


def _steps(steps: Sequence[int]) -> str:
    return " ".join(map(str, steps))


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"


def _cell(name: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if name == "mean" else _signed(value)
