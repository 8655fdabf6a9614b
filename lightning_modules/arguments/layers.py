"""Configs that are laid over each other: what an order or a combination would lose in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import yaml

OVERLAYS = "overlays"
"""Name of the folders of overlays, of which two exclude each other by what they set."""
PARTS = ("step_selector", "objective", "allocator")
"""Arguments of the module of which two overlays cannot each choose another class."""
READERS = ("EntropyPeaks", "MedianSplitAllocator", "ProportionalAllocator")
"""Classes that fall back to a fixed rule where no callback publishes the entropy they read."""


@dataclass(frozen=True)
class _Layer:
    """What a config file says, as far as the files beside it are concerned."""

    file: str
    content: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether it chooses the module, on which the others are laid."""
        return bool(self._at("model").get("class_path"))

    @property
    def is_overlay(self) -> bool:
        return not self.is_whole and Path(self.file).resolve().parent.name == OVERLAYS

    @property
    def is_recipe(self) -> bool:
        """Whether it is an overlay that also says T: a recipe, on which methods are laid."""
        return self.is_overlay and "num_steps" in self._at("model", "init_args")

    @property
    def is_method(self) -> bool:
        return self.is_overlay and not self.is_recipe

    @property
    def rank(self) -> int:
        """How far below it lies: whole configs at the bottom, then recipes, then the rest."""
        return 2 if self.is_whole else int(self.is_recipe)

    @property
    def parts(self) -> dict[str, str]:
        """Names of the classes that it chooses for `PARTS`."""
        arguments = self._at("model", "init_args")
        chosen = {part: _class_name(arguments.get(part)) for part in PARTS}
        return {part: name for part, name in chosen.items() if name}

    @property
    def removes_probe(self) -> bool:
        """Whether it takes the probe away, and puts nothing in its place."""
        trainer = self._at("trainer")
        removed = trainer.get("without_callbacks") or []
        return "EntropyProbe" in removed and not trainer.get("callbacks+")

    def _at(self, *keys: str) -> dict[str, Any]:
        found: Any = self.content
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


def contradicting_layers(files: Sequence[str]) -> str | None:
    """Find config files that cannot be laid over each other in the order given.

    Args:
        files: The files, in the order of the command line. What is not YAML is left to the parser.

    Returns:
        One line that says which of them and what to do, or None.
    """
    contents = [(file, read_config(file)) for file in files]
    layers = [_Layer(file, content) for file, content in contents if content is not None]
    for upper, lower in combinations(layers, 2):
        if lower.rank > upper.rank and (upper.is_overlay or lower.is_whole):
            return (
                f"{upper.file} comes before {lower.file}, which replaces what it sets or adds; a "
                f"file is laid over those before it, so give {lower.file} first"
            )
    for one, other in permutations([layer for layer in layers if layer.is_method], 2):
        for part in PARTS:
            first, second = one.parts.get(part), other.parts.get(part)
            if first and second and first != second:
                return (
                    f"{one.file} and {other.file} are two methods: model.{part} is {first} in the "
                    f"one and {second} in the other; give one of them"
                )
        reader = next((name for name in other.parts.values() if name in READERS), None)
        if one.removes_probe and reader:
            return (
                f"{one.file} takes away callbacks.EntropyProbe, which {reader} in {other.file} "
                "reads; give one of them"
            )
    return None


def read_config(file: str) -> dict[str, Any] | None:
    """Read a config as it is written.

    Args:
        file: As it was given.

    Returns:
        Its settings; None for what is not there or is no mapping in YAML.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the parser says what is wrong with it
    return content if isinstance(content, dict) else None


def _class_name(value: Any) -> str | None:
    path = value.get("class_path") if isinstance(value, dict) else value
    return path.rpartition(".")[2] if isinstance(path, str) else None
