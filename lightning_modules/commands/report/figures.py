"""The page's curves, each as SVG that stands by itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import Tensor

from aegpo.study.decision_log import Decision
from aegpo.utilities.names import figure_text, tag_name
from aegpo.utilities.page.page import picture
from lightning_modules.commands.report.run_files import RunFiles, Series

_SIZE = (7.2, 2.9)  # inches; as wide as a phone shows legibly
_SMOOTHED = 9
"""Iterations over which a training curve is averaged."""
STEERING = {
    "reward/mean": "reward of the training images",
    "reward/zero_variance_groups": "groups that say nothing",
    "ratio/clip_fraction": "share of clipped ratios",
    "update/gradient_norm": "gradient norm",
    "entropy/mean": "attention entropy",
    "canary/group_diversity": "diversity inside groups",
}
"""Numbers of the training that are drawn where they were logged."""


def to_svg(figure: Figure) -> str:
    """Write a figure as SVG: text as text, nothing random.

    Args:
        figure: The figure.

    Returns:
        The document.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "aegpo", "font.size": 9}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def figure(drawn: Figure, title: str) -> dict[str, Any]:
    """A figure as a part of a page's section."""
    return picture(to_svg(drawn).encode(), "svg+xml", title)


def draw_score(runs: Sequence[RunFiles], tag: str) -> Figure:
    """Draw a score of all runs against model evaluations and against time.

    Args:
        runs: The runs.
        tag: A held-out score, or a number of the training, which is averaged.

    Returns:
        Two axes with one scale of scores; time is that of the iterations, without evaluations.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, run in enumerate(runs):
        values = run.series(tag)
        if not values:
            continue
        smooth = not tag.startswith("val/")
        for axes, costs in ((left, evaluations(run)), (right, minutes(run))):
            _curve(axes, values, costs, f"C{number}", figure_text(run.name), smooth)
    _thousands(left)
    left.set_xlabel("model evaluations")
    right.set_xlabel("minutes of training")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _curve(axes: Axes, values: Series, costs: Series, color: str, label: str, smooth: bool) -> None:
    steps, known = sorted(values), sorted(costs)
    if len(known) < 2:  # nothing was logged that this axis is about
        return
    across = np.interp(steps, known, [costs[step] for step in known])
    heights = np.array([values[step] for step in steps])
    if smooth and len(steps) > 2 * _SMOOTHED:
        axes.plot(across, heights, color=color, alpha=0.25, linewidth=0.7)
        window = np.ones(_SMOOTHED)
        counts = np.convolve(np.ones(len(steps)), window, "same")
        heights = np.convolve(heights, window, "same") / counts
    axes.plot(across, heights, "-" if smooth else "-o", color=color, markersize=3, label=label)


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.locator_params(axis="x", nbins=5)


def evaluations(run: RunFiles) -> Series:
    """Model evaluations spent by iteration, 0 before the first."""
    return {0: 0.0} | run.series("cost/evaluations")


def minutes(run: RunFiles) -> Series:
    """Minutes spent in iterations, by iteration: the phases of `seconds/` added up."""
    phases = [values for tag, values in run.scalars.items() if tag.startswith("seconds/")]
    steps = sorted({step for values in phases for step in values})
    spent = accumulate(sum(values.get(step, 0.0) for values in phases) for step in steps)
    return {0: 0.0} | {step: seconds / 60 for step, seconds in zip(steps, spent, strict=True)}


def draw_by_category(run: RunFiles, reward: str) -> Figure | None:
    """Draw a held-out score of one run by category; None where there is one category."""
    prefix = f"val/{reward}/"
    tags = sorted(tag for tag in run.scalars if tag.startswith(prefix))
    if len(tags) < 2:
        return None
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    for number, tag in enumerate(tags):
        name = figure_text(tag_name(tag.removeprefix(prefix)))
        _curve(axes, run.series(tag), evaluations(run), f"C{number % 10}", name, False)
    _thousands(axes)
    axes.set_xlabel("model evaluations")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def draw_decisions(decisions: Sequence[Decision]) -> Figure:
    """Draw Entropy(t) and the chosen steps over the iterations, from a decision log.

    Args:
        decisions: At least one.

    Returns:
        One map of steps by iteration for each; the first only where entropy was read. Where a
        warm-up had fewer steps, each is as high as its share of the trajectory.
    """
    most = max(one.num_steps for one in decisions)

    def column(values: Tensor) -> Any:
        mean = values.float().mean(0).numpy()
        return mean[np.arange(most) * len(mean) // most]

    chosen = np.stack([column(one.stochastic) for one in decisions], axis=1)
    maps: dict[str, Any] = {"share of prompts that explore": chosen}
    read = [column(one.entropy.curve) for one in decisions if one.entropy is not None]
    if read:
        maps = {"Entropy(t), mean of the batch": np.stack(read, axis=1)} | maps
    alike = all(one.num_steps == most for one in decisions)
    figure = Figure(figsize=(_SIZE[0], 2.3 * len(maps)), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(len(maps), 1, squeeze=False)[:, 0], maps.items(), strict=True
    ):
        ends = (decisions[0].iteration, decisions[-1].iteration + 1, len(values) - 0.5, -0.5)
        image = axes.imshow(values, aspect="auto", extent=ends, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel("denoising step" if alike else f"denoising step of {most}, or its share")
        figure.colorbar(image, ax=axes)
    axes.set_xlabel("iteration")
    return figure
