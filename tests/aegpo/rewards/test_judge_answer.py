"""What judges write, and the score that they mean."""

from __future__ import annotations

import time

import pytest

from aegpo.rewards.judge_answer import Read, read_score

FOUR = [
    "Final Score: 4",
    "Final Score:\n4",
    "Final Score:\n- 4",
    "Final Score - 4",
    "Final Score：4",
    "FINAL SCORE = 4",
    "Final_Score: 4",
    "Final Score is: 4",
    "Final Score: 4.",
    "Final Score: 4.0",
    "Final Score: 4 stars",
    "| Final Score | 4 |",
    "Final Score: <4>",
    "Final Score: [4]",
    "Final Score: \\boxed{4}",
    "Final Score (4): the hat is green",
    "Final Score: 4 - the hat is green",
    # The scale beside it.
    "Final Score (1-5): 4",
    "Final Score (1-5) 4",
    "Final Score [1–5] = 4",
    "**Final Score (1-5):** 4",
    "Score 1-5: 4",
    "Final Score (from 1 to 5): 4",
    "Final Score (out of 5): 4",
    "Final Score on a scale of 1 to 5: 4",
    "Final Score (1 = worst, 5 = best): 4",
    "**Final Score**: **4/5**",
    "Final Score: 4 out of 5",
    "Final score 4/5, since 2 of 3 hats are there",
    # Other words for it.
    "I would give this image a score of 4 out of 5.",
    "The score is 4.",
    "final score of **4**",
    "Rating: [[4]]",
    "<score>4</score>",
    '{"score": 4}',
    '```json\n{"Final Score": "4"}\n```',
    # A number alone.
    "4",
    "**4/5**",
    "$\\boxed{4}$",
    "4\nAll objects are there.",
    "The hat is there.\n\n4",
    # Other scores and numbers around it.
    "Final Score: 4. Alignment score 80%",
    "Final Score: 4 (Alignment: 80%)",
    "Final Score: 4\nConfidence score: 90%",
    "Final Score: 4\nNote: a score of 5 would need a hat",
    "At first a score: 2, but the hat is green.\nFinal Score: 4",
    "Alignment Score (1-5): 3\nQuality Score (1-5): 5\nFinal Score (1-5): 4",
    "Overall score: 4, alignment score: 2",
    "Score: 4. Confidence score: 5",
    '{"alignment_score": 3, "score": 4, "style_score": 2}',
    "<think>A score of 2? Final Score: 3.</think>\nFinal Score: 4",
    "Final Score: <a number from 1 to 5>\nFinal Score: 4",
]

NONE = [
    "I like it",
    "Final Score: N/A",
    '{"score": null}',
    "Final Score: <a number from 1 to 5>",
    "Final Score: 80%",
    "Final Score: 4K image",
    "This is the score. 4 hats are there",
    "underscore 4",
    "<think>Final Score: 2",
]


@pytest.mark.parametrize("answer", FOUR)
def test_the_score_that_is_meant(answer: str) -> None:
    assert read_score(answer, (1, 5)) == Read(4.0)


@pytest.mark.parametrize("answer", NONE)
def test_no_score_is_none(answer: str) -> None:
    assert read_score(answer, (1, 5)) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("Final Score: 9", "outside the scale of 1 to 5"),
        ("Final Score: -1", "outside the scale of 1 to 5"),
        ("Final Score: 4/10", "out of 10 instead of 5"),
        ("Final Score: 3-4", "with a range instead of a number"),
        ("Final Score: 3 to 4", "with a range instead of a number"),
    ],
)
def test_a_number_that_is_no_score_says_why(answer: str, problem: str) -> None:
    read = read_score(answer, (1, 5))
    assert read is not None and read.problem == problem


def test_decimals_and_other_scales() -> None:
    assert read_score("Final Score: 4.5.", (1, 5)) == Read(4.5)
    assert read_score("Final Score: 4,5", (1, 5)) == Read(4.5)
    assert read_score("Final Score: 80%", (0, 100)) == Read(80.0)
    assert read_score("Final Score: 80/100", (0, 100)) == Read(80.0)
    assert read_score("Score: -0.5", (-1, 1)) == Read(-0.5)


def test_a_long_answer_takes_no_time() -> None:
    began = time.perf_counter()
    for part in ("score ", "score (", "1-", "1", "a", ": -", "<think>"):
        read_score(f"score {part * 20000}x", (1, 5))
    assert time.perf_counter() - began < 5
