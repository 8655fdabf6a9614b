"""The command line in this process: configs parsed and built, or whole short runs."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules.cli import main as entry
from lightning_modules.cli.lightning_cli import AEGPOCLI
from lightning_modules.cli.run_folder.reservation import release

ROOT = Path(__file__).parents[2]


class Built(Exception):
    """Carries the CLI out of its constructor, which would go on to run the command."""


class Kept(AEGPOCLI):
    """Keeps what it parsed."""

    def before_instantiate_classes(self) -> None:
        self.parsed = copy.deepcopy(self.config["fit"].as_dict())


class Stop(Kept):
    """Parses and builds, and runs nothing."""

    def after_instantiate_classes(self) -> None:
        raise Built(self)


def build(*args: str) -> Any:
    """The CLI with everything built; to be looked at only, as tests share it."""
    return _build(*(str(Path(arg).resolve()) if arg.endswith(".yaml") else arg for arg in args))


@functools.cache
def _build(*args: str) -> Any:
    with pytest.raises(Built) as built:
        Stop(["fit", *args])
    release()  # nothing runs
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


def assert_changes_what_it_names(file: Path, base: Any, cli: Any) -> None:
    """An overlay makes of a base's parsed config what it says, and leaves the rest alone."""
    named = {key.removesuffix("+") for key in flat(yaml.safe_load(file.read_text()))}
    before, after = flat(base.parsed), flat(cli.parsed)
    changed = {key for key in before | after if before.get(key) != after.get(key)} - {"config"}
    # Where a class is replaced, its other arguments change too.
    below = [n.removesuffix("class_path") if n.endswith("class_path") else f"{n}." for n in named]
    stray = [key for key in changed - named if not key.startswith(tuple(below))]
    assert changed and not stray


def run(monkeypatch: pytest.MonkeyPatch, command: str, *args: str) -> None:
    """The console script, in this process."""
    monkeypatch.setattr(sys, "argv", ["aegpo", command, *args])
    entry.main()


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator
