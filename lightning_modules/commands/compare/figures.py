"""Draws what a comparison found: a few curves that can be told apart, and all differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aegpo.study.comparison import Estimate
from aegpo.study.learning_curves import Runs, band
from aegpo.utilities.names import figure_text
from lightning_modules.commands.compare.settings import MOST_CURVES, Comparison

_WIDTH = 8.0  # inches
_ROW = 0.27


def chosen_curves(settings: Comparison, methods: Mapping[str, Runs]) -> list[str]:
    """The methods whose curves are drawn: those asked for, or the reference and the best.

    Args:
        settings: What was compared.
        methods: Finished runs of each method.

    Returns:
        At most `MOST_CURVES` names, in the order of the comparison's file.
    """
    if settings.curves is not None:
        return [name for name in settings.curves if name in methods]

    def median(name: str) -> float:
        return float(np.median([curve.at(settings.budget) for curve in methods[name].values()]))

    others = sorted((name for name in methods if name != settings.reference), key=median)
    chosen = {settings.reference, *others[::-1][: MOST_CURVES - 1]}
    return [name for name in methods if name in chosen]


def draw_curves(settings: Comparison, methods: Mapping[str, Runs], score: float) -> Figure:
    """Draw score against evaluations: median over seeds, a band, and the score to reach.

    Args:
        settings: What was compared.
        methods: Finished runs of each method; only `chosen_curves` of them are drawn.
        score: The score to reach.

    Returns:
        The figure; its legend stands below the axes and hides nothing.
    """
    chosen = chosen_curves(settings, methods)
    figure = Figure(figsize=(_WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    for name in chosen:
        runs = methods[name]
        grid = np.linspace(0, settings.budget_of(name), 201)
        median, low, high = band(runs, grid, settings.band == "quartiles")
        seeds = f"{len(runs)} seed" + "s" * (len(runs) != 1)
        (line,) = axes.plot(grid, median, label=f"{figure_text(name)} ({seeds})")
        axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(score, color="gray", linestyle=":", linewidth=1)
    axes.set_xlabel("model evaluations")
    shaded = "all seeds" if settings.band == "range" else "middle half of the seeds"
    left_out = len(methods) - len(chosen)
    others = f"; {left_out} more in differences.png" if left_out else ""
    axes.set_ylabel(figure_text(settings.metric))
    axes.set_title(f"median over seeds, shaded: {shaded}{others}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=min(3, len(chosen)), fontsize="small")
    return figure


def draw_differences(
    settings: Comparison, rows: Sequence[Mapping[str, Any]], score: float
) -> Figure:
    """Draw every method's difference to the reference and what the target costs it, a row each.

    A filled marker has a 95 % interval, an open one the range of its seeds. What was not reached
    is an arrow at the right edge.

    Args:
        settings: What was compared.
        rows: What `aegpo.study.comparison.summarize` returned, for two methods or more.
        score: The score to reach.

    Returns:
        A forest plot, the best method on top.
    """
    others = [row for row in rows if row["difference"] is not None]
    others.sort(key=lambda row: -math.inf if math.isnan(v := row["difference"].value) else v)
    figure = Figure(figsize=(_WIDTH, 1.5 + _ROW * len(others)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for height, row in enumerate(others):
        _row(left, height, row["difference"])
        _row(right, height, row["ratio"])
    left.axvline(0, color="gray", linewidth=1)
    right.axvline(1, color="gray", linewidth=1)
    names = [f"{figure_text(row['method'])} ({len(row['seeds'])})" for row in others]
    left.set_yticks(range(len(others)), names, fontsize="small")
    left.set_ylim(-0.6, len(others) - 0.4)
    reference = figure_text(settings.reference)
    left.set_xlabel(f"{figure_text(settings.metric)} minus {reference}'s", fontsize="small")
    passage = " for good" if settings.passage == "lasting" else ""
    right.set_xlabel(f"evaluations to {score:.4g}{passage} over {reference}'s", fontsize="small")
    right.set_xscale("log")
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(axis="x", labelsize="small")
    left.locator_params(axis="x", nbins=5)
    _arrows(right, [row["ratio"] for row in others])
    figure.suptitle(
        f"after {settings.budget:,} evaluations; filled: 95 % interval, open: range of seeds, "
        "arrow: not reached",
        fontsize="medium",
    )
    return figure


def _row(axes: Axes, height: float, estimate: Estimate) -> None:
    """One estimate with its ends, as far as they are numbers."""
    if not math.isfinite(estimate.value):
        return
    low, high = (
        value if math.isfinite(value) else estimate.value for value in (estimate.low, estimate.high)
    )
    axes.plot([low, high], [height, height], color="C0", linewidth=1.5)
    face = "white" if estimate.is_range or math.isnan(estimate.low) else "C0"
    axes.plot([estimate.value], [height], "o", color="C0", markerfacecolor=face, markersize=5)


def _arrows(axes: Axes, ratios: Sequence[Estimate]) -> None:
    """At the edge: the median or the upper end was not reached."""
    edge = axes.get_xlim()[1]
    for height, ratio in enumerate(ratios):
        if math.isinf(ratio.value) or math.isinf(ratio.high):
            start = ratio.value if math.isfinite(ratio.value) else edge
            axes.plot([start, edge], [height, height], color="C0", linewidth=1.5, linestyle=":")
            axes.plot([edge], [height], ">", color="C0", markersize=6, clip_on=False)
    axes.set_xlim(right=edge)
