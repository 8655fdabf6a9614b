"""All scenes, and sets in which no picture shows two captions."""

from __future__ import annotations

import itertools

from aegpo.shapes.captions import all_scenes, exclusive
from aegpo.shapes.prompts import parse
from aegpo.shapes.splits import SPLITS, split


def test_all_scenes_are_all_there_are() -> None:
    texts = [scene.text for scene in all_scenes()]
    assert len(set(texts)) == len(texts) == 24 + 72 + 2880 + 1920
    assert {scene.text for name in SPLITS for scene in split(name)} <= set(texts)


def test_exclusive_by_hand() -> None:
    texts = [
        "a red circle above a blue square",
        "a blue square below a red circle",  # says the same
        "a red circle and a blue square",  # true of it as well
        "a blue square above a red circle",
        "a red circle left of a blue square",
        "a green cross and a red circle",
        "a red circle and a green cross",
        "a red circle left of a green cross",  # the earlier one is true of its pictures
        "a red circle",
    ]
    kept = [scene.text for scene in exclusive(parse(text) for text in texts)]
    assert kept == [texts[row] for row in (0, 3, 4, 5, 8)]
    assert exclusive(all_scenes(), limit=7) == all_scenes()[:7]


def test_of_every_pair_one_text_or_all_four_relations_remain() -> None:
    objects = list(itertools.product(range(6), range(4)))
    pairs = sum(a[0] < b[0] for a, b in itertools.product(objects, objects))
    relations_first = sorted(all_scenes(), key=lambda scene: scene.relation is None)
    kept = exclusive(relations_first)
    assert sum(scene.relation is not None for scene in kept) == 4 * pairs
    # Two groups of one object each leave nothing beside their relations.
    assert not [s for s in kept if s.category == "two" and s.num_objects == 2]
