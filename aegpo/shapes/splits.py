"""The prompt splits of the Shapes world: fixed lists of scenes that never share a text."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from aegpo.shapes.prompts import COLORS, RELATIONS, SHAPES, Group, Scene

SPLITS: tuple[str, ...] = ("train", "heldout", "hard")
SHARES: dict[str, float] = {"single": 0.4, "count": 0.2, "two": 0.2, "relation": 0.2}
"""Of the draws of training; prompts of one object are few, and the first that are learned."""

_Object = tuple[int, int]  # (color index, shape index)


def _unseen(color: int, shape: int) -> bool:
    """Latin rule: six of the 24 objects are held out, one per color, each shape at least once."""
    return shape == color % len(SHAPES)


def _unseen_pair(a: _Object, b: _Object) -> bool:
    """About a quarter of the pairs of seen objects, whichever of the two is named first."""
    return (sum(a) + sum(b)) % 4 == 0


def _group(item: _Object, count: int = 1) -> Group:
    return Group(tuple(COLORS)[item[0]], SHAPES[item[1]], count)


def _spread(pairs: Sequence[tuple[_Object, _Object]], size: int, phase: float = 0.0) -> list[Scene]:
    """`size` of the pairs as scenes, by low-discrepancy (golden ratio) steps through the list."""
    golden = (math.sqrt(5) - 1) / 2
    chosen: dict[int, None] = {}
    for k in itertools.count():
        if len(chosen) == size:
            break
        chosen[int((phase + k * golden) % 1 * len(pairs))] = None
    return [Scene((_group(pairs[i][0]), _group(pairs[i][1]))) for i in sorted(chosen)]


def _pairs_of(seen: bool) -> list[tuple[_Object, _Object]]:
    """Ordered pairs of differently colored objects that are both seen, or else not both."""
    objects = list(itertools.product(range(len(COLORS)), range(len(SHAPES))))
    return [
        (a, b)
        for a, b in itertools.product(objects, objects)
        if a[0] != b[0] and seen == (not _unseen(*a) and not _unseen(*b))
    ]


def _with_relations(
    pairs: Sequence[tuple[_Object, _Object]], size: int, phase: float
) -> list[Scene]:
    each = size // len(RELATIONS)
    return [
        replace(scene, relation=relation)
        for i, relation in enumerate(RELATIONS)
        for scene in _spread(pairs, each, phase + i / len(RELATIONS))
    ]


@functools.lru_cache(maxsize=len(SPLITS))
def split(name: str) -> tuple[Scene, ...]:
    """The scenes of a split: fixed, disjoint from the other splits, in order of category.

    - "train": 18 of the 24 objects, alone (18) and in twos and threes (36), 160 pairs and 192
      relations of them.
    - "heldout": the other 6 objects, alone (6) and in twos and threes (12); 48 pairs and 48
      relations, half of them pairs of seen objects that never meet in training, half with an
      object that training never shows.
    - "hard": forms that training never shows: four of a kind (24), and two of one kind with one of
      another (40).

    Args:
        name: "train", "heldout" or "hard".

    Returns:
        The scenes; two of them never share a text.

    Raises:
        ValueError: For another name.
    """
    objects = list(itertools.product(range(len(COLORS)), range(len(SHAPES))))
    seen_pairs = _pairs_of(seen=True)
    if name == "train":
        own = [item for item in objects if not _unseen(*item)]
        pairs = [pair for pair in seen_pairs if not _unseen_pair(*pair)]
        twos = _spread(pairs, 160)
        relations = _with_relations(pairs, 192, 0.1)
    elif name == "heldout":
        own = [item for item in objects if _unseen(*item)]
        pairs = [pair for pair in seen_pairs if _unseen_pair(*pair)]
        unseen = _pairs_of(seen=False)
        twos = _spread(pairs, 24) + _spread(unseen, 24)
        relations = _with_relations(pairs, 24, 0.1) + _with_relations(unseen, 24, 0.1)
    elif name == "hard":
        fours = [Scene((_group(item, 4),)) for item in objects]
        mixed = _spread(seen_pairs + _pairs_of(seen=False), 40)
        return (
            *fours,
            *(Scene((replace(s.groups[0], count=2), s.groups[1])) for s in mixed),
        )
    else:
        raise ValueError(f"unknown split {name!r}; choose from {', '.join(SPLITS)}")
    singles = [Scene((_group(item),)) for item in own]
    counts = [Scene((_group(item, count),)) for item in own for count in (2, 3)]
    return (*singles, *counts, *twos, *relations)


def records(name: str) -> list[dict[str, str]]:
    """A split as rows for a JSONL prompt file.

    Args:
        name: "train", "heldout" or "hard".

    Returns:
        One dict per scene with keys "prompt", "category" and "split".
    """
    return [
        {"prompt": scene.text, "category": scene.category, "split": name} for scene in split(name)
    ]
