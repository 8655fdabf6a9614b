"""A bound on another reward: its verdicts, what is missing, and bounds that decide nothing."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_training import Redness

from aegpo.rewards import GroupDiversity, ShapesJudge, Threshold


class Half(Redness):
    """Cannot score every other image."""

    def __call__(self, images, prompts, metadata):
        scores = super().__call__(images, prompts, metadata)
        scores[::2] = float("nan")
        return scores


def images(*redness: float) -> torch.Tensor:
    drawn = torch.zeros(len(redness), 3, 4, 4)
    drawn[:, 0] = torch.tensor(redness)[:, None, None]
    return drawn


def test_verdicts_and_missing_scores() -> None:
    drawn, nothing = images(0.2, 0.5, 0.49, 1.0), [{}] * 4
    reward = Threshold(Redness(), at=0.5)
    assert reward(drawn, ["a"] * 4, nothing).tolist() == [0, 1, 0, 1]
    assert (reward.name, reward.range, reward.groupwise) == ("redness_0.5", (0.0, 1.0), False)
    found = Threshold(Half(), at=0.5)(drawn, ["a"] * 4, nothing)
    torch.testing.assert_close(found, torch.tensor([math.nan, 1, math.nan, 1]), equal_nan=True)


def test_it_is_what_the_other_reward_is() -> None:
    assert Threshold(GroupDiversity(), at=0.1).groupwise
    assert Threshold(ShapesJudge(), at=0.8).name == "shapes_judge_0.8"


@pytest.mark.parametrize("at", [-1.0, 1.5, math.nan, math.inf])
def test_a_bound_that_decides_nothing_is_refused(at: float) -> None:
    with pytest.raises(ValueError, match=r"above the lowest score of redness .*-1 to 1"):
        Threshold(Redness(), at=at)
