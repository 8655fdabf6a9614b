"""Scenes as captions of pictures: all that the grammar has, and sets without false negatives.

A contrastive loss takes every other caption of its batch for wrong. That holds only where no
picture can show two of them: "a red circle above a blue square" is also "a blue square below a red
circle", and both are "a red circle and a blue square".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from aegpo.shapes.prompts import (
    COLORS,
    MAX_OBJECTS,
    OPPOSITES,
    RELATIONS,
    SHAPES,
    Group,
    Scene,
)


def all_scenes() -> list[Scene]:
    """Every scene of the grammar, in a fixed order.

    Returns:
        24 single objects, 72 counts, 2880 scenes of two groups and 1920 relations.
    """
    counts = range(1, MAX_OBJECTS + 1)
    groups = [Group(color, shape, n) for color in COLORS for shape in SHAPES for n in counts]
    scenes = [Scene((group,)) for group in groups]
    for pair in itertools.permutations(groups, 2):
        if pair[0].color == pair[1].color or pair[0].count + pair[1].count > MAX_OBJECTS:
            continue
        scenes.append(Scene(pair))
        if pair[0].count == pair[1].count == 1:
            scenes += [Scene(pair, relation) for relation in RELATIONS]
    return scenes


def exclusive(scenes: Iterable[Scene], limit: int | None = None) -> list[Scene]:
    """Leaves out every scene that one picture can show together with an earlier one.

    Args:
        scenes: The scenes, most wanted first.
        limit: Most scenes to keep; all by default.

    Returns:
        The kept scenes in their order: a rendered picture of one shows none of the others.
    """
    kept: list[Scene] = []
    relations: dict[frozenset[Group], set[str | None]] = {}
    for scene in scenes:
        if len(kept) == limit:
            break
        relation = _relation_in_fixed_order(scene)
        taken = relations.setdefault(frozenset(scene.groups), set())
        # Without a relation a text is true of every picture of its groups.
        if taken and (relation is None or None in taken or relation in taken):
            continue
        taken.add(relation)
        kept.append(scene)
    return kept


def _relation_in_fixed_order(scene: Scene) -> str | None:
    """The relation as it reads with the colors in alphabetical order."""
    if scene.relation is None:
        return None
    first, second = scene.groups
    return scene.relation if first.color < second.color else OPPOSITES[scene.relation]
