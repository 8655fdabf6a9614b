"""Hand-made pictures against GenEval's clauses, with every expected number worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegpo.prompts.sets.geneval import RELATIONS
from aegpo.rewards.geneval.clauses import (
    MAX_OBJECTS,
    Clause,
    ClauseScores,
    DetectedObject,
    confident_objects,
    judge,
    read_clauses,
    relative_positions,
)


def put(
    label: str, x: float = 50, y: float = 50, *, score: float = 0.95, color: str | None = None
) -> DetectedObject:
    """An object of 10 x 10 pixels around a center."""
    return DetectedObject(label, score, (x - 5, y - 5, x + 5, y + 5), color)


def verdict(objects: list[DetectedObject], *include: dict[str, Any], **more: Any) -> ClauseScores:
    return judge(objects, read_clauses({"include": list(include), **more}))


DOG, TWO_DOGS = {"class": "dog", "count": 1}, {"class": "dog", "count": 2}
RED_DOG = {**DOG, "color": "red"}
CAT_LEFT = {"class": "cat", "count": 1, "position": ["left of", 0]}


# Relative positions: boxes of 10 x 10, so that 0.1 * (10 + 10) = 2 pixels are taken off.


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (-20, 0, {"left of"}),
        (20, 0, {"right of"}),
        (0, -20, {"above"}),
        (0, 20, {"below"}),
        (20, 20, {"right of", "below"}),  # 18 / 28.3 = 0.64 in both directions
        (-20, 20, {"left of", "below"}),
        (20, 9, {"right of"}),  # 18 / 21.9 = 0.82 and 7 / 21.9 = 0.32
        (0, 0, set()),
        (2, 0, set()),  # just within what is taken off
        (2, 2, set()),
        (4, 0, set()),  # 2 / 4 is half, and must be more
        (4.1, 0, {"right of"}),
        (6, 6, set()),  # 4 / 8.49 = 0.47 in both directions: neither
        (7, 7, {"right of", "below"}),  # 5 / 9.9 = 0.505
    ],
)
def test_positions_by_hand(dx: float, dy: float, expected: set[str]) -> None:
    assert relative_positions(put("a", 50 + dx, 50 + dy).box, put("b").box) == expected


def test_larger_objects_must_lie_further_apart() -> None:
    small, wide = (45.0, 45.0, 55.0, 55.0), (20.0, 45.0, 120.0, 55.0)  # center x 50 and 70
    # 20 apart, minus 0.1 * (10 + 100) = 11, is 9, less than half of 20.
    assert relative_positions(small, wide) == set()
    assert relative_positions(small, (60.0, 45.0, 80.0, 55.0)) == {"left of"}  # 20 - 3 = 17


@given(
    st.tuples(*[st.floats(0, 400)] * 4),
    st.tuples(*[st.floats(1, 200)] * 4),
)
def test_positions_turn_round_with_the_objects_and_with_the_axes(
    corner: tuple[float, ...], size: tuple[float, ...]
) -> None:
    box = (corner[0], corner[1], corner[0] + size[0], corner[1] + size[1])
    other = (corner[2], corner[3], corner[2] + size[2], corner[3] + size[3])
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    swapped = dict(zip(RELATIONS, ("above", "below", "left of", "right of"), strict=True))
    here = relative_positions(box, other)
    assert relative_positions(other, box) == {opposite[relation] for relation in here}
    turned = relative_positions(
        (box[1], box[0], box[3], box[2]), (other[1], other[0], other[3], other[2])
    )
    assert turned == {swapped[relation] for relation in here}


# Which objects count


def test_confidence_is_strict_and_higher_for_counting() -> None:
    objects = [put("dog", score=score) for score in (0.3, 0.31, 0.9, 0.91)] + [put("cat")]
    assert [item.score for item in confident_objects(objects, "dog")] == [0.91, 0.9, 0.31]
    assert [item.score for item in confident_objects(objects, "dog", counting=True)] == [0.91]
    two = verdict(objects, TWO_DOGS, tag="counting")
    assert not two.strict and two.graded == 0.5
    assert verdict(objects, {"class": "dog", "count": 3}, tag="single_object").strict


def test_at_most_sixteen_of_a_class_count() -> None:
    objects = [put("dog", score=0.5 + 0.01 * number) for number in range(20)]
    sure = confident_objects(objects, "dog")
    assert len(sure) == MAX_OBJECTS
    assert [item.score for item in sure] == sorted((o.score for o in objects), reverse=True)[:16]
    assert verdict(objects, DOG).graded == 1 - 15  # the lowest graded score there is


# Numbers


@pytest.mark.parametrize(
    ("found", "graded", "strict", "accurate"),
    [
        (0, 0, False, False),
        (1, 0.5, False, False),
        (2, 1, True, True),
        (3, 0.5, False, True),  # GenEval leaves surplus objects to the exclude clauses
        (5, -0.5, False, True),
    ],
)
def test_numbers(found: int, graded: float, strict: bool, accurate: bool) -> None:
    objects = [put("dog")] * found + [put("cat")] * 3
    assert verdict(objects, TWO_DOGS) == ClauseScores(graded, strict, accurate)


def test_an_exclude_clause_overrules_both_verdicts_and_not_the_graded_score() -> None:
    exclude = [{"class": "dog", "count": 3}]
    assert verdict([put("dog")] * 2, TWO_DOGS, exclude=exclude) == ClauseScores(1, True, True)
    assert verdict([put("dog")] * 3, TWO_DOGS, exclude=exclude) == ClauseScores(0.5, False, False)
    no_cats = [{"class": "cat", "count": 1}]
    found = [put("dog"), put("dog"), put("cat")]
    assert verdict(found, TWO_DOGS, exclude=no_cats) == ClauseScores(1, False, False)


def test_two_classes_are_averaged() -> None:
    cat = {"class": "cat", "count": 1}
    assert verdict([put("dog"), put("cat")], DOG, cat) == ClauseScores(1, True, True)
    assert verdict([put("dog")], DOG, cat) == ClauseScores(0.5, False, False)
    assert verdict([], DOG, cat) == ClauseScores(0, False, False)


# Colors


@pytest.mark.parametrize(
    ("colors", "clause", "expected"),
    [
        (["red"], RED_DOG, ClauseScores(1, True, True)),
        (["blue"], RED_DOG, ClauseScores(0.5, False, False)),  # (1 + 0) / 2
        ([], RED_DOG, ClauseScores(0, False, False)),  # (0 + 0) / 2
        (["red", "blue"], RED_DOG, ClauseScores(0, False, True)),  # the surest one is red
        (["blue", "red"], RED_DOG, ClauseScores(0, False, False)),
        (["red", "blue"], {**TWO_DOGS, "color": "red"}, ClauseScores(0.75, False, False)),
        (["red", "red"], {**TWO_DOGS, "color": "red"}, ClauseScores(1, True, True)),
        (["red"], {**TWO_DOGS, "color": "red"}, ClauseScores(0.25, False, False)),  # (.5 + 0) / 2
    ],
)
def test_colors(colors: list[str], clause: dict[str, Any], expected: ClauseScores) -> None:
    objects = [put("dog", score=0.9 - 0.1 * rank, color=color) for rank, color in enumerate(colors)]
    assert verdict(objects, clause) == expected


# Positions in clauses


def test_a_cat_left_of_a_dog() -> None:
    dog = put("dog", 50)
    assert verdict([dog, put("cat", 20)], DOG, CAT_LEFT) == ClauseScores(1, True, True)
    wrong = verdict([dog, put("cat", 80)], DOG, CAT_LEFT)
    assert wrong == ClauseScores(pytest.approx(2 / 3), False, False)  # 1, 1, 0
    # Without the cat: 1 for the dog, 0 for the number and 0 for the place of the cat.
    assert verdict([dog], DOG, CAT_LEFT).graded == pytest.approx(1 / 3)
    # Without the dog there is nothing to be left of: 0, 1, 0.
    alone = verdict([put("cat", 20)], DOG, CAT_LEFT)
    assert alone == ClauseScores(pytest.approx(1 / 3), False, False)


def test_every_object_must_stand_right_to_every_other() -> None:
    dogs = [put("dog", 50, score=0.9), put("dog", 70, score=0.8)]
    left = {"class": "cat", "count": 2, "position": ["left of", 0]}
    good = [put("cat", 10), put("cat", 20)]
    bad = [put("cat", 10), put("cat", 60)]  # left of one dog only
    assert verdict(dogs + good, TWO_DOGS, left).strict
    assert verdict(dogs + bad, TWO_DOGS, left) == ClauseScores(pytest.approx(2 / 3), False, False)


def test_a_second_dog_is_strictly_wrong_and_leniently_ignored() -> None:
    dogs = [put("dog", 50, score=0.9), put("dog", 10, score=0.4)]
    scores = verdict([*dogs, put("cat", 30)], DOG, CAT_LEFT)
    # 1 - |1 - 2| = 0 for the dogs, 1 for the cat, 0 for its place: the dogs' clause has failed.
    assert scores == ClauseScores(pytest.approx(1 / 3), False, True)


def test_a_wrong_color_leaves_the_position_out() -> None:
    clause = {**CAT_LEFT, "color": "black"}
    objects = [put("dog", 50), put("cat", 20, color="white")]
    assert verdict(objects, DOG, clause) == ClauseScores(pytest.approx(2 / 3), False, False)
    objects = [put("dog", 50), put("cat", 20, color="black")]
    assert verdict(objects, DOG, clause) == ClauseScores(1, True, True)


@given(st.lists(st.tuples(st.sampled_from(["dog", "cat"]), st.floats(0, 1), st.floats(0, 200))))
def test_strict_implies_accurate_and_a_full_graded_score(
    found: list[tuple[str, float, float]],
) -> None:
    objects = [put(label, x, score=score) for label, score, x in found]
    scores = verdict(objects, DOG, CAT_LEFT, exclude=[{"class": "dog", "count": 2}])
    assert -14 <= scores.graded <= 1
    assert scores.strict == (math.isclose(scores.graded, 1) and scores.accurate)
    assert scores.accurate or not scores.strict


# Reading clauses


def test_clauses_are_read() -> None:
    clauses = read_clauses({"tag": "counting", "include": [DOG, CAT_LEFT], "exclude": [TWO_DOGS]})
    assert clauses.include == (Clause("dog", 1), Clause("cat", 1, None, "left of", 0))
    assert clauses.exclude == (Clause("dog", 2),) and clauses.counting
    assert clauses.labels == {"dog", "cat"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no list of GenEval clauses 'include' .it has nothing"),
        ({"category": "x"}, r"it has \['category'\]"),
        ({"include": []}, "no list of GenEval clauses"),
        ({"include": "dog"}, "no list of GenEval clauses"),
        ({"include": [{"count": 1}]}, "names no class"),
        ({"include": [{"class": "dog"}]}, "'count' of at least 1"),
        ({"include": [{"class": "dog", "count": 0}]}, "'count' of at least 1"),
        ({"include": [{**DOG, "color": "teal"}]}, "one of red, orange"),
        ({"include": [DOG, {**DOG, "position": ["beside", 0]}]}, "one of left of, right of"),
        ({"include": [DOG, {**DOG, "position": ["above", 1]}]}, "number of an earlier clause"),
        ({"include": [{**DOG, "position": ["above", 0]}]}, "number of an earlier clause"),
        ({"include": [DOG, {**DOG, "position": "above"}]}, "number of an earlier clause"),
        ({"include": [DOG], "exclude": [{"class": "dog"}]}, "'count' of at least 1"),
    ],
)
def test_malformed_clauses_are_refused_in_one_line(metadata: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read_clauses(metadata)
    assert "\n" not in str(refused.value)
