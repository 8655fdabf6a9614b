"""The command line in this process: configs parsed and built, or whole short runs."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules.cli import main as entry
from lightning_modules.cli.lightning_cli import AEGPOCLI

ROOT = Path(__file__).parents[2]


class Built(Exception):
    """Carries the CLI out of its constructor, which would go on to run the command."""


class Stop(AEGPOCLI):
    """Parses and builds, and runs nothing."""

    def before_instantiate_classes(self) -> None:
        self.parsed = copy.deepcopy(self.config["fit"].as_dict())

    def after_instantiate_classes(self) -> None:
        raise Built(self)


def build(*args: str) -> Any:
    """The CLI with everything built; to be looked at only, as tests share it."""
    return _build(*(str(Path(arg).resolve()) if arg.endswith(".yaml") else arg for arg in args))


@functools.cache
def _build(*args: str) -> Any:
    with pytest.raises(Built) as built:
        Stop(["fit", *args])
    return built.value.args[0]


def configs(*files: Path) -> list[str]:
    return [argument for file in files for argument in ("--config", str(file))]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.")
    return leaves


def run(monkeypatch: pytest.MonkeyPatch, command: str, *args: str) -> None:
    """The console script, in this process."""
    monkeypatch.setattr(sys, "argv", ["aegpo", command, *args])
    entry.main()


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator
