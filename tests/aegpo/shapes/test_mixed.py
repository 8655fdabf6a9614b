"""The mix of easy and hard prompts: small, of every kind, its two splits apart."""

from __future__ import annotations

from collections import Counter

import pytest

from aegpo.prompts.sets import bundled_records
from aegpo.shapes import mixed
from aegpo.shapes.prompts import CATEGORIES, parse
from aegpo.shapes.splits import SPLITS, split


def test_its_splits_share_no_prompt_and_hold_every_kind() -> None:
    rows = {name: mixed.records(name) for name in mixed.SPLITS}
    texts = [row["prompt"] for own in rows.values() for row in own]
    assert len(set(texts)) == len(texts)
    for name, own in rows.items():
        assert own == bundled_records(f"shapes_mixed:{name}")
        assert {row["split"] for row in own} == {name}
        for row in own:
            assert row["category"] in ("hard", "crowd", parse(row["prompt"]).category)
    counts = [Counter(row["category"] for row in own) for own in rows.values()]
    assert counts[0] == dict.fromkeys(CATEGORIES, 7) | {"hard": 26, "crowd": 75}
    assert counts[1] == dict.fromkeys(CATEGORIES, 7) | {"single": 6, "hard": 38, "crowd": 45}
    # No crowd is a scene of the Shapes world.
    known = {scene.text for name in SPLITS for scene in split(name)}
    assert not known & {
        row["prompt"] for own in rows.values() for row in own if row["category"] == "crowd"
    }


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'hard'; choose from train, heldout"):
        mixed.records("hard")
