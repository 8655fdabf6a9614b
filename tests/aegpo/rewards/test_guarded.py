"""What fails is missing and says so; what is wrong in a reward's code is an error."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.rewards.weighted_sum import WeightedSum

IMAGES = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))


class Canned(Reward):
    """Returns or raises what it was given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        assert len(images) == len(prompts) == len(metadata)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def score(answer: Any, images: Tensor | None = IMAGES) -> Tensor:
    return guarded_scores(Canned(answer), images, ["a"] * 3, [{}] * 3).total


def test_good_scores_pass_as_fp32_and_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(torch.tensor([0.0, -1.5, 2.0], dtype=torch.float64))
        assert score([1, 2, 3]).tolist() == [1.0, 2.0, 3.0]
    assert scores.dtype == torch.float32 and scores.tolist() == [0.0, -1.5, 2.0]


def test_scores_that_are_not_finite_are_missing_and_the_others_stay() -> None:
    with pytest.warns(UserWarning, match=r"'canned': 2 of 3 scores are not finite"):
        scores = score(torch.tensor([float("inf"), 0.25, float("nan")]))
    assert scores[1] == 0.25
    assert scores.isnan().tolist() == [True, False, True]


def test_an_exception_costs_all_scores_and_is_named() -> None:
    with pytest.warns(UserWarning, match=r"'canned' raised OSError\('no network'\)"):
        scores = score(OSError("no network"))
    assert scores.shape == (3,) and bool(scores.isnan().all())


@pytest.mark.parametrize("answer", [torch.zeros(2), torch.zeros(3, 1), torch.tensor(1.0)])
def test_another_number_of_scores_is_a_mistake_in_the_code(answer: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one score per image, shape \(3,\)"):
        score(answer)


def test_a_rollout_without_images_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="needs decoded images"):
        score(torch.zeros(3), images=None)


def test_all_parts_are_there_whatever_happened() -> None:
    """Ranks gather them together, so a rank whose reward failed may not have fewer."""
    good, bad = Canned([1.0, 2.0, 3.0]), Canned(OSError("no network"))
    bad.name = "bad"
    for parts in ([good], [good, bad]):
        reward = WeightedSum(parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scored = guarded_scores(reward, IMAGES, ["a"] * 3, [{}] * 3)
        assert list(scored.parts) == list(reward.part_names)
        assert all(part.shape == (3,) for part in scored.parts.values())
        assert bool(scored.total.isnan().all()) == (bad in parts)
