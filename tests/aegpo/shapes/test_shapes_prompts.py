"""The language of the Shapes world: grammar, splits, near misses."""

from __future__ import annotations

import pytest

from aegpo.shapes.prompts import (
    CATEGORIES,
    COLORS,
    RELATIONS,
    SHAPES,
    Group,
    Scene,
    near_misses,
    parse,
)
from aegpo.shapes.splits import SPLITS, records, split

WRITTEN = {
    "a red circle": (Scene((Group("red", "circle"),)), "single", 1),
    "three blue crosses": (Scene((Group("blue", "cross", 3),)), "count", 3),
    "four red circles": (Scene((Group("red", "circle", 4),)), "count", 4),
    "a red circle and a blue square": (
        Scene((Group("red", "circle"), Group("blue", "square"))),
        "two",
        2,
    ),
    "two red circles and a blue square": (
        Scene((Group("red", "circle", 2), Group("blue", "square"))),
        "two",
        3,
    ),
    "a cyan cross left of a blue square": (
        Scene((Group("cyan", "cross"), Group("blue", "square")), "left of"),
        "relation",
        2,
    ),
    "a cyan cross below a blue square": (
        Scene((Group("cyan", "cross"), Group("blue", "square")), "below"),
        "relation",
        2,
    ),
}


def objects_of(scene: Scene) -> frozenset[tuple[str, str]]:
    return frozenset((group.color, group.shape) for group in scene.groups)


@pytest.mark.parametrize("text", WRITTEN)
def test_written_prompts_are_read_as_meant(text: str) -> None:
    scene, category, num_objects = WRITTEN[text]
    assert parse(text) == scene
    assert scene.text == text
    assert scene.category == category
    assert scene.num_objects == num_objects


@pytest.mark.parametrize("name", SPLITS)
def test_every_prompt_of_a_split_survives_the_round_trip(name: str) -> None:
    for scene in split(name):
        assert parse(scene.text) == scene
        assert scene.category in CATEGORIES


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "the end of the text"),
        ("one red circle", "'one'"),
        ("a purple circle", "'purple'"),
        ("a red circles", "'circles'"),
        ("two red circle", "'circle'"),
        ("a red", "the end of the text"),
        ("a red circle or a blue square", "'or'"),
        ("a red circle left a blue square", "'left'"),
        ("a red circle and a blue square and a green cross", "'and'"),
    ],
)
def test_other_texts_are_refused_by_the_offending_word_and_the_grammar(
    text: str, word: str
) -> None:
    with pytest.raises(ValueError, match="cannot read the prompt") as error:
        parse(text)
    assert f"found {word} " in str(error.value)
    assert "a scene is GROUP" in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a red circle and a red square", "differ in color"),
        ("three red circles and two blue squares", "at most 4"),
        ("two red circles above a blue square", "two single objects"),
    ],
)
def test_grammatical_texts_of_impossible_scenes_say_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Group("purple", "circle"),
        lambda: Group("red", "star"),
        lambda: Group("red", "circle", 0),
        lambda: Scene(()),
        lambda: Scene((Group("red", "circle"), Group("blue", "cross")), "near"),
    ],
)
def test_scenes_check_themselves(build) -> None:
    with pytest.raises(ValueError):
        build()


def test_splits_have_their_sizes_and_share_nothing() -> None:
    sizes = {
        name: [sum(scene.category == c for scene in split(name)) for c in CATEGORIES]
        for name in SPLITS
    }
    assert sizes == {
        "train": [18, 36, 160, 192],
        "heldout": [6, 12, 48, 48],
        "hard": [0, 24, 40, 0],
    }
    texts = [scene.text for name in SPLITS for scene in split(name)]
    assert len(set(texts)) == len(texts)


def test_held_out_combinations_never_occur_in_training() -> None:
    train = {objects_of(scene) for scene in split("train")}
    shown = frozenset().union(*train)
    new_objects, new_pairs = 0, 0
    for scene in split("heldout"):
        assert objects_of(scene) not in train
        if len(scene.groups) == 2:
            new_objects += not objects_of(scene) <= shown
            new_pairs += objects_of(scene) <= shown
        else:
            assert not objects_of(scene) <= shown
    assert new_objects == new_pairs == 48  # half of the 96 twos and relations each
    assert {max(g.count for g in s.groups) for s in split("train")} == {1, 2, 3}


def test_every_color_shape_and_relation_is_trained_evenly() -> None:
    for category in CATEGORIES:
        scenes = [scene for scene in split("train") if scene.category == category]
        groups = [group for scene in scenes for group in scene.groups]
        for words, spelled in ((COLORS, "color"), (SHAPES, "shape")):
            share = [sum(getattr(g, spelled) == w for g in groups) / len(groups) for w in words]
            assert min(share) > 0.6 / len(words)
    relations = [s.relation for s in split("train") if s.relation is not None]
    assert [relations.count(relation) for relation in RELATIONS] == [48] * 4
    pairs = [s for s in split("train") if len(s.groups) == 2]
    assert sum(s.groups[0].shape != s.groups[1].shape for s in pairs) > 0.7 * len(pairs)


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'test'; choose from train, heldout, hard"):
        split("test")


def test_near_misses_change_one_thing() -> None:
    scene = parse("two red circles and a blue square")
    assert {key: miss.text for key, miss in near_misses(scene).items()} == {
        "color": "two green circles and a blue square",
        "shape": "two red squares and a blue square",
        "count": "three red circles and a blue square",
    }
    assert near_misses(parse("a green cross above a blue circle")) == {
        "color": parse("a yellow cross above a blue circle"),
        "shape": parse("a green circle above a blue circle"),
        "relation": parse("a green cross below a blue circle"),
    }
    assert near_misses(parse("four red circles"))["count"] == parse("three red circles")
    for name in SPLITS:
        for scene in split(name):
            assert all(miss != scene for miss in near_misses(scene).values())


def test_records_are_rows_of_a_prompt_file() -> None:
    rows = records("heldout")
    assert len(rows) == len(split("heldout"))
    assert rows[0].keys() == {"prompt", "category", "split"}
    for row in rows:
        assert parse(row["prompt"]).category == row["category"]
        assert row["split"] == "heldout"
