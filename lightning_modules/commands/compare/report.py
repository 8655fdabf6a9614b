"""Writes what a comparison found: table (Markdown, CSV, JSON), raw curves and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aegpo.study.comparison import FEWEST, Estimate, Target, summarize
from aegpo.study.learning_curves import Runs
from aegpo.utilities.tables import finite, markdown_table, write_csv
from lightning_modules.commands.compare.figures import draw_curves, draw_differences
from lightning_modules.commands.compare.pilot import Choice, chosen_values
from lightning_modules.commands.compare.settings import Comparison

_COLUMNS = (
    *("method", "seeds", "final score", "against {}", "mean score", "against {}"),
    *("evaluations to {}", "reached", "ratio"),
)


def write_report(
    settings: Comparison,
    methods: Mapping[str, Runs],
    failures: Mapping[str, str],
    out: Path,
    choices: Mapping[str, Choice],
) -> str:
    """Write `table.md`, `table.csv`, `table.json`, `curves.csv`, `curves.png`, `differences.png`.

    Args:
        settings: What was compared.
        methods: Finished runs of each method.
        failures: What went wrong, by the name of the run.
        out: Folder of the files.
        choices: What the pilot chose for each method; empty without one.

    Returns:
        The Markdown table.
    """
    target = Target(
        settings.budget,
        settings.target,
        settings.budget_of(settings.reference),
        settings.passage == "lasting",
    )
    score, rows = summarize(methods, settings.reference, target, settings.budgets)
    missing = {
        f"{name}, seed {seed}": curve.missing
        for name, runs in methods.items()
        for seed, curve in runs.items()
        if curve.missing
    }
    markdown = markdown_page(settings, score, rows, failures, missing)
    if settings.pilot is not None and choices:
        markdown += f"\n{chosen_values(choices, settings.pilot.by)}\n"
    (out / "table.md").write_text(markdown)
    found = {
        "metric": settings.metric,
        "budget": settings.budget,
        "reference": settings.reference,
        "target": score,
        "methods": finite(rows),
        "missing_scores": missing,
        "failures": dict(failures),
        "pilot": {name: choice.as_json() for name, choice in choices.items()},
    }
    (out / "table.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    flat = [_flat(row) for row in rows]
    write_csv(out / "table.csv", list(flat[0]), [row.values() for row in flat])
    points = [
        (name, seed, cost, value)
        for name, runs in methods.items()
        for seed, curve in runs.items()
        for cost, value in zip(curve.cost.tolist(), curve.score.tolist(), strict=True)
    ]
    write_csv(out / "curves.csv", ("method", "seed", "evaluations", "score"), points)
    draw_curves(settings, methods, score).savefig(out / "curves.png", dpi=120)
    if len(rows) > 1:
        draw_differences(settings, rows, score).savefig(out / "differences.png", dpi=120)
    return markdown


def markdown_page(
    settings: Comparison,
    score: float,
    rows: list[dict[str, Any]],
    failures: Mapping[str, str],
    missing: Mapping[str, int],
) -> str:
    """Lay the rows out for a reader.

    Args:
        settings: What was compared.
        score: The score to reach.
        rows: What `aegpo.study.comparison.summarize` returned.
        failures: What went wrong, by the name of the run.
        missing: How many scores of a run that is in the table are no numbers.

    Returns:
        A heading sentence, the table, how to read it, the scores left out and the failed runs.
    """
    columns = [name.format(settings.reference) for name in _COLUMNS]
    lasting = settings.passage == "lasting"
    columns[6] = f"evaluations to {score:.4g}" + " for good" * lasting
    table = []
    for row in rows:
        final = f"{row['final_median']:.4f} ({min(row['final']):.4f} to {max(row['final']):.4f})"
        cells = [
            row["method"],
            str(len(row["seeds"])),
            final,
            _interval(row["difference"], "{:+.4f}"),
            f"{row['mean_median']:.4f}",
            _interval(row["mean_difference"], "{:+.4f}"),
            _evaluations(row["evaluations_to_target_median"], row["budget"]),
            f"{row['reached']} of {len(row['seeds'])}",
            _interval(row["ratio"], "{:.3f}"),
        ]
        table.append(cells)
    origin = (
        f"the median final score of {settings.reference}"
        if settings.target is None
        else "the score asked for"
    )
    lines = [
        f"`{settings.metric}` after {settings.budget:,} model evaluations (rollout, probe and "
        "reference 1, update 3).",
        "",
        markdown_table(columns, table),
        "",
        f"Scores and evaluations are medians over seeds (lowest to highest seed in parentheses); "
        f"the mean score is that of the curve from its start to {settings.budget:,}. "
        f"{score:.4g} is {origin}"
        + ", reached when no later score is below it"
        * lasting
        + f". Ratio: evaluations to reach it over those of "
        f"{settings.reference}"
        + _bounds(rows)
        + f". A run that does not reach it in {settings.budget:,} counts as infinite for a method "
        f"and as the whole budget for {settings.reference}, so a ratio is an upper bound.",
    ]
    if settings.budgets:
        longer = ", ".join(f"{name} {settings.budgets[name]:,}" for name in settings.budgets)
        lines[-1] += f" Evaluations to the target look as far as a method was run: {longer}."
    if missing:
        lines += ["", f"Single `{settings.metric}` that are no numbers, and are left out:", ""]
        lines += [f"- {name}: {count}" for name, count in missing.items()]
    if failures:
        lines += ["", "Runs that failed and are left out:", ""]
        lines += [f"- {name}: {problem}" for name, problem in failures.items()]
    return "\n".join(lines) + "\n"


def _bounds(rows: list[dict[str, Any]]) -> str:
    """What brackets and parentheses hold, as the clauses of a sentence."""
    kinds = {
        row[name].is_range
        for row in rows
        for name in ("ratio", "difference", "mean_difference")
        if row[name] is not None and not math.isnan(row[name].low)
    }
    clauses = [_pairing(rows)] if len(rows) > 1 else []
    if False in kinds:
        clauses.append("brackets hold 95 % bootstrap intervals over seeds")
    if True in kinds:
        clauses.append(
            f"with fewer than {FEWEST} seeds parentheses hold the range from the lowest to the "
            "highest of them (or of their pairs, where seeds are not paired), which is no 95 % "
            "interval: of two seeds it holds the true median in 50 % of cases, of three in 75, of "
            "four in 88"
        )
    return "".join(f"; {clause}" for clause in clauses)


def _pairing(rows: list[dict[str, Any]]) -> str:
    unpaired = [row["method"] for row in rows if row["ratio"] and not row["ratio"].paired]
    return f"seeds not paired for {', '.join(unpaired)}" if unpaired else "paired by seed"


def _evaluations(value: float, budget: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else f"> {budget:,}"


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "–"
    value, low, high = (
        "undefined" if math.isnan(x) else form.format(x) if math.isfinite(x) else "not reached"
        for x in (estimate.value, estimate.low, estimate.high)
    )
    if math.isnan(estimate.low):
        return value
    return f"{value} ({low} to {high})" if estimate.is_range else f"{value} [{low}, {high}]"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "method": row["method"],
        "seeds": len(row["seeds"]),
        "budget": row["budget"],
        "final_median": row["final_median"],
        "final_min": min(row["final"]),
        "final_max": max(row["final"]),
        "mean_median": row["mean_median"],
        "evaluations_to_target_median": row["evaluations_to_target_median"],
        "reached": row["reached"],
    }
    for name in ("ratio", "difference", "mean_difference"):
        estimate = row[name]
        for part in ("value", "low", "high"):
            flat[f"{name}_{part}"] = "" if estimate is None else getattr(estimate, part)
        known = estimate is not None and not math.isnan(estimate.low)
        kind = "range of seeds" if known and estimate.is_range else "95 % interval"
        flat[f"{name}_low_high"] = kind if known else ""
    return flat
