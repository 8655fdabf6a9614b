"""What only the command line knows of a run, for commands that ask for it by an argument `run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN_KEYS = ("seed_everything", "trainer", "model", "data")
"""Sections of a config that belong to the run, not to a command."""


@dataclass(frozen=True)
class ConfiguredRun:
    """A run as it is configured, whatever a command's own trainer, model and data are.

    Args:
        config: Seed, trainer, model and data as configured, in words; not the command's own
            arguments, which name files of the user.
        files: The given configs.
        trainer: The trainer's configured arguments as built, by name.
        build_data: Builds the configured data; the command may run where it no longer is.
    """

    config: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    build_data: Callable[[], Any] = lambda: None


def left_callbacks(trainer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a config, without those that it takes away again.

    Who adds callbacks to a config has to clear its ``without_callbacks``, which would take a new
    one away as well.

    Args:
        trainer: The section of the trainer, in words.

    Returns:
        An entry with `class_path` for each.
    """
    callbacks = trainer.get("callbacks") or []
    listed: list[dict[str, Any]] = [callbacks] if isinstance(callbacks, dict) else callbacks
    taken = trainer.get("without_callbacks") or []
    return [one for one in listed if one["class_path"].rpartition(".")[2] not in taken]
