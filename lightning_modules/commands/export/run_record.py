"""What is known of a run besides its weights: its config, its logged scores, its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from lightning_modules.commands.run_logs import read_scalars

EXAMPLES = ("a red circle", "two blue circles", "a green square", "three red triangles")
"""Prompts that any text-to-image model can draw, where the run's own cannot be read."""

RUN_KEYS = ("seed_everything", "trainer", "model", "data")
"""Sections of a config that belong to the run, not to a command."""


@dataclass(frozen=True)
class RunRecord:
    """A run as the command line knows it.

    Attributes:
        config: Seed, trainer, model and data as configured.
        log_folders: Where its loggers may have written; the first one with logs counts.
        held_out: Prompts of its evaluation, none where they cannot be read.
    """

    config: dict[str, Any] = field(default_factory=dict)
    log_folders: list[Path] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)

    @property
    def pretrained(self) -> str | None:
        """What was trained, as the config names it."""
        model: Any = self.config.get("model") or {}
        for part in ("init_args", "policy", "init_args"):
            model = model.get(part) or {}
        name = model.get("pretrained")
        return None if name is None else str(name)

    def examples(self, count: int) -> list[str]:
        """Return at most `count` different prompts to draw, held-out ones if there are any."""
        return list(dict.fromkeys(self.held_out or EXAMPLES))[:count]

    def scores(self, rewards: Sequence[str], iteration: int) -> dict[str, dict[int, float]]:
        """Read the held-out scores.

        Args:
            rewards: Names of the rewards.
            iteration: Iteration of the checkpoint; what was logged after it is left out.

        Returns:
            For each reward its score by iteration; empty where nothing was logged.
        """
        tags = [f"val/{name}" for name in rewards]
        for folder in self.log_folders:
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
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("iteration")
    return figure


def run_config(dumped: str) -> dict[str, Any]:
    """Keep of a command's merged config what a run of ``fit`` has, in words as configured.

    Args:
        dumped: The config as YAML.

    Returns:
        The sections `RUN_KEYS`; not the command's own arguments, which name files of the user.
    """
    config = yaml.safe_load(dumped)
    return {key: config[key] for key in RUN_KEYS if key in config}


def log_folders(files: Sequence[Any], loggers: Any) -> list[Path]:
    """Say where the logs of a run may lie.

    Args:
        files: The given configs; a run saves its own beside its logs.
        loggers: What the config has as loggers: one, several, or none.

    Returns:
        Folders, the most likely one first.
    """
    several = loggers if isinstance(loggers, list) else [loggers]
    own = [getattr(logger, "log_dir", None) for logger in several]
    return [Path(str(file)).parent for file in files] + [Path(path) for path in own if path]


def held_out_prompts(build: Callable[[], Any]) -> list[str]:
    """Read the first held-out prompts.

    Args:
        build: Builds the run's data.

    Returns:
        The prompts of the first batch; none where the data is no longer there.
    """
    try:
        return list(next(iter(build().val_dataloader())).prompts)
    except Exception:  # a user's data may raise anything, and nobody depends on it here
        return []
