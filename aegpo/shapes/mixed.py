"""A mix of the Shapes world: a few prompts of every category, and many that are too hard.

Under a verdict of 0 or 1 most of its groups say nothing at first, because no image passes
(docs/dead_groups.md). It is small enough for every prompt to be visited several times, so that
which of them are worth a visit can be found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aegpo.shapes.prompts import CATEGORIES, Scene
from aegpo.shapes.splits import split

SPLITS: tuple[str, ...] = ("train", "heldout")
EACH = 7
"""Prompts of each category of the Shapes world's own split, if there are so many."""
CROWDS = ((2, 2), (3, 1), (1, 3))
"""Numbers of two kinds of objects that no split of the Shapes world has."""


def records(name: str) -> list[dict[str, str]]:
    """A split as rows for a JSONL prompt file.

    Args:
        name: "train" (28 prompts of the four categories, 26 hard ones, 75 crowds) or "heldout" (27,
            38 and 45).

    Returns:
        One dict a prompt with the keys "prompt", "category" ("hard" for what stands in that split
        of the Shapes world, "crowd" for four objects of two kinds) and "split".

    Raises:
        ValueError: For another name.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; choose from {', '.join(SPLITS)}")
    chosen: list[tuple[str, Scene]] = []
    for category in CATEGORIES:
        found = [scene for scene in split(name) if scene.category == category]
        size = min(EACH, len(found))
        chosen += [(category, found[place * len(found) // size]) for place in range(size)]
    hard = split("hard")
    pairs = [scene for scene in hard if len(scene.groups) == 2]
    crowds = [_counted(scene, *counts) for counts in CROWDS for scene in pairs]
    chosen += [("hard", scene) for scene in _part(hard, name, 2, 5)]
    chosen += [("crowd", scene) for scene in _part(crowds, name, 5, 8)]
    return [
        {"prompt": scene.text, "category": category, "split": name} for category, scene in chosen
    ]


def _counted(scene: Scene, first: int, second: int) -> Scene:
    one, other = scene.groups
    return Scene((replace(one, count=first), replace(other, count=second)))


def _part(scenes: Sequence[Scene], name: str, trained: int, of: int) -> list[Scene]:
    """Of every `of` scenes the first `trained` ones for training, the others held out."""
    is_train = name == SPLITS[0]
    return [scene for place, scene in enumerate(scenes) if (place % of < trained) == is_train]
