"""What is known of a run besides its weights: what it trained, its logged scores, its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aegpo.utilities.names import figure_text, tag_part
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.run_logs import read_scalars

EXAMPLES = ("a red circle", "two blue circles", "a green square", "three red triangles")
"""Prompts that any text-to-image model can draw, where the run's own cannot be read."""


def pretrained_name(run: ConfiguredRun) -> str | None:
    """Say what was trained, as the config names it.

    Args:
        run: The run.

    Returns:
        The policy's `pretrained`; None where the config has none.
    """
    model: Any = run.config.get("model") or {}
    for part in ("init_args", "policy", "init_args"):
        model = model.get(part) or {}
    name = model.get("pretrained")
    return None if name is None else str(name)


def example_prompts(run: ConfiguredRun, count: int) -> list[str]:
    """Choose different prompts to draw.

    Args:
        run: The run.
        count: How many are wanted.

    Returns:
        At most `count` of the first held-out batch; `EXAMPLES` where the data is no longer there.
    """
    try:
        prompts = next(iter(run.build_data().val_dataloader())).prompts
    except Exception:  # a user's data may raise anything, and nobody depends on it here
        prompts = EXAMPLES
    return list(dict.fromkeys(prompts))[:count]


def logged_scores(
    run: ConfiguredRun, rewards: Sequence[str], iteration: int
) -> dict[str, dict[int, float]]:
    """Read the held-out scores.

    Args:
        run: The run; the first of its folders with logs counts.
        rewards: Names of the rewards.
        iteration: Iteration of the checkpoint; what was logged after it is left out.

    Returns:
        For each reward its score by iteration; empty where nothing was logged.
    """
    tags = [f"val/{tag_part(name)}" for name in rewards]
    for folder in _log_folders(run):
        logged = read_scalars(folder, tags)
        if any(logged.values()):
            return {
                name: {at: score for at, score in logged[tag].items() if at <= iteration}
                for name, tag in zip(rewards, tags, strict=True)
            }
    return {name: {} for name in rewards}


def draw_scores(scores: dict[str, dict[int, float]]) -> Figure:
    """Draw the held-out scores over the iterations, each reward on its own scale.

    Args:
        scores: For each reward its score by iteration; at least one is not empty.

    Returns:
        The figure.
    """
    logged = {name: values for name, values in scores.items() if values}
    figure = Figure(figsize=(4 * len(logged), 3), layout="constrained")
    for axes, (name, values) in zip(
        figure.subplots(1, len(logged), squeeze=False)[0], logged.items(), strict=True
    ):
        iterations = sorted(values)
        axes.plot(iterations, [values[at] for at in iterations], "-o", markersize=3)
        axes.set_title(figure_text(name), fontsize="medium")
        axes.set_xlabel("iteration")
    return figure


def _log_folders(run: ConfiguredRun) -> list[Path]:
    """Where the logs may lie, the most likely folder first: a run saves its config beside them."""
    loggers = run.trainer.get("logger")
    several = loggers if isinstance(loggers, list) else [loggers]
    own = [getattr(logger, "log_dir", None) for logger in several]
    return [file.parent for file in run.files] + [Path(path) for path in own if path]
