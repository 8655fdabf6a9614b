"""The figures of `aegpo compare`: few curves, all differences, nothing hidden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aegpo.study.comparison import Target, summarize
from aegpo.study.learning_curves import Curve, Runs
from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.compare.figures import (
    chosen_curves,
    draw_curves,
    draw_differences,
)
from lightning_modules.commands.compare.settings import MOST_CURVES, Comparison, Overlays

BUDGET = 100


def runs_to(end: float, seeds: int) -> Runs:
    return {
        seed: Curve(np.array([0.0, BUDGET]), np.array([0.4, end + seed / 1000]))
        for seed in range(seeds)
    }


METHODS = {
    f"method_{number}": runs_to(0.4 + number / 50, 5 if number % 2 else 2) for number in range(10)
} | {"never": runs_to(0.3, 5)}


def settings(**changes: Any) -> Comparison:
    return Comparison(
        methods={name: Overlays() for name in METHODS},
        base="base.yaml",
        budget=BUDGET,
        metric="val/score",
        reference="method_1",
        **changes,
    )


def drawn(given: Comparison) -> tuple[Figure, Figure, list[dict[str, Any]]]:
    score, rows = summarize(METHODS, given.reference, Target(BUDGET))
    return draw_curves(given, METHODS, score), draw_differences(given, rows, score), rows


def place(line: Line2D) -> tuple[float, float]:
    """Where a line starts."""
    return float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0])


def test_the_reference_and_the_best_are_drawn_and_no_more_than_can_be_told_apart() -> None:
    chosen = chosen_curves(settings(), METHODS)
    assert chosen == ["method_1", *(f"method_{number}" for number in range(5, 10))]
    assert len(chosen) == MOST_CURVES
    figure, _, _ = drawn(settings())
    (axes,) = figure.axes
    assert axes.get_title().endswith("5 more in differences.png")
    colors = [line.get_color() for line in axes.get_lines()[:MOST_CURVES]]
    assert len(set(colors)) == MOST_CURVES


def test_the_legend_stands_beside_the_curves_not_on_them() -> None:
    figure, _, _ = drawn(settings())
    figure.canvas.draw()
    (legend,) = figure.legends
    axes = figure.axes[0].get_window_extent()
    box = legend.get_window_extent()
    assert box.y1 < axes.y0
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


def test_curves_that_are_asked_for_are_drawn() -> None:
    given = settings(curves=["never", "method_3"])
    given.validate()
    assert chosen_curves(given, METHODS) == ["never", "method_3"]


@pytest.mark.parametrize("curves", [[], ["nobody"], [f"method_{n}" for n in range(7)]])
def test_curves_that_cannot_be_are_refused(curves: list[str]) -> None:
    with pytest.raises(UserError, match=r"curves=.* must name one to 6 of the methods"):
        settings(curves=curves).validate()


def test_every_other_method_has_a_row_the_best_on_top() -> None:
    _, figure, rows = drawn(settings())
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names[0] == "never (5)"
    assert names[-1] == "method_9 (5)"
    assert len(names) == len(METHODS) - 1
    # Each difference is a marker at its value, filled where it has a 95 % interval.
    by_height = {place(line)[1]: line for line in left.get_lines() if line.get_marker() == "o"}
    for height, name in enumerate(names):
        (row,) = (row for row in rows if name == f"{row['method']} ({len(row['seeds'])})")
        marker = by_height[height]
        assert place(marker)[0] == pytest.approx(row["difference"].value)
        assert (marker.get_markerfacecolor() == "white") == (len(row["seeds"]) < 5)
    # What was not reached is an arrow at the edge.
    arrows = [place(line)[1] for line in right.get_lines() if line.get_marker() == ">"]
    unreached = [n for n, name in enumerate(names) if name.startswith(("never", "method_0"))]
    assert arrows == unreached
