"""What fails is missing and says so; what is wrong in a reward's code is an error."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
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
        if isinstance(self.answer, BaseException):
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
    with pytest.warns(UserWarning, match=r"'canned' has 2 of 3 scores that are not finite"):
        scores = score(torch.tensor([float("inf"), 0.25, float("nan")]))
    assert scores[1] == 0.25
    assert scores.isnan().tolist() == [True, False, True]


def test_an_exception_costs_all_scores_and_is_named() -> None:
    with pytest.warns(UserWarning, match=r"'canned' raised OSError\('no network'\); 3 of 3 images"):
        scores = score(OSError("no network"))
    assert scores.shape == (3,) and bool(scores.isnan().all())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (torch.tensor([1 + 2j, 0.5, 3.0]), "returned a Tensor"),  # torch drops the imaginary part
        (np.array([1 + 2j, 0.5, 3.0]), "returned a ndarray"),
        ([1 + 2j, 0.5, 3.0], "returned a list"),
        (torch.tensor([1.0, 0.0, 2.0]).to_sparse(), "returned a Tensor"),
        (SystemExit(0), "raised SystemExit"),
    ],
)
def test_what_is_no_number_and_who_leaves_the_program_costs_the_scores(
    answer: Any, said: str
) -> None:
    with pytest.warns(UserWarning, match=said):
        scores = score(answer)
    assert bool(scores.isnan().all())


@pytest.mark.parametrize("error", [MemoryError("none left"), torch.OutOfMemoryError("none left")])
def test_memory_that_ran_out_is_no_fault_of_an_image(error: Exception) -> None:
    with pytest.raises(type(error), match="none left"):
        score(error)


GOOD = [0.5, 0.25, 1.0]


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        tuple(GOOD),
        np.array(GOOD),
        torch.tensor(GOOD, dtype=torch.float64, requires_grad=True),
        (torch.tensor(GOOD), {"details": 1}),
        (GOOD, ["good", "bad", "good"]),
        [torch.tensor(value) for value in GOOD],
        [np.float32(value) for value in GOOD],
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_what_a_reward_may_return_is_the_same_alone_and_in_a_sum(answer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(answer).tolist() == GOOD
        total = guarded_scores(WeightedSum([Canned(answer)]), IMAGES, ["a"] * 3, [{}] * 3)
    assert total.total.tolist() == GOOD and not total.total.requires_grad


def test_none_in_a_list_is_missing() -> None:
    with pytest.warns(UserWarning, match="1 of 3 scores that are not finite"):
        assert score([0.5, None, 1.0]).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "returned None; it must return a tensor, an array or a list"),
        ({"score": GOOD}, "returned a dict"),
        ("good", "returned a str"),
        (["good"] * 3, "returned a list"),
        ((None, {}), r"returned a tuple \(NoneType, dict\)"),
        (torch.zeros(2), r"returned shape \(2,\) for"),
        (torch.zeros(3, 1), r"returned shape \(3, 1\) for"),
        (torch.tensor(1.0), r"returned shape \(\) for"),
        ((0.5, {}), r"returned a tuple \(float, dict\)"),
    ],
)
def test_what_is_no_score_is_named_and_costs_its_own_images(answer: Any, told: str) -> None:
    for reward in (Canned(answer), WeightedSum([Canned(answer)])):
        with pytest.warns(UserWarning, match=told):
            scored = guarded_scores(reward, IMAGES, ["a"] * 3, [{}] * 3)
        assert bool(scored.total.isnan().all())


class Moody(Reward):
    """Scores an image by its mean, and fails at the calls and prompts that it is told."""

    def __init__(self, calls: tuple[int, ...] = (), prompt: str = "") -> None:
        self.calls, self.prompt, self.seen = calls, prompt, 0

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        self.seen += 1
        if self.seen in self.calls or self.prompt in prompts:
            raise ConnectionError("away")
        images += 1  # what a careless reward does with its argument
        metadata[0]["spoilt"] = True
        return images.mean((1, 2, 3)) - 1


PROMPTS = ["a", "b", "a"]


def test_a_moment_away_costs_nothing_and_is_said() -> None:
    reward = Moody(calls=(1,))
    with pytest.warns(UserWarning, match=r"ConnectionError\('away'\); the second try went well"):
        scores = guarded_scores(reward, IMAGES, PROMPTS, [{}] * 3)
    torch.testing.assert_close(scores.total, IMAGES.mean((1, 2, 3)))
    assert reward.seen == 2


def test_a_prompt_that_fails_costs_its_own_images_and_no_others() -> None:
    reward = Moody(prompt="b")
    with pytest.warns(UserWarning, match=r"ConnectionError\('away'\); 1 of 3 images"):
        scores = guarded_scores(reward, IMAGES, PROMPTS, [{}] * 3)
    assert scores.total.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores.total[[0, 2]], IMAGES.mean((1, 2, 3))[[0, 2]])
    assert reward.seen == 4  # twice as a whole, then each prompt's images together


def test_a_reward_has_copies_of_its_own() -> None:
    before, metadata = IMAGES.clone(), [{"category": "x"}, {}, {}]
    guarded_scores(Moody(), IMAGES, PROMPTS, metadata)
    assert torch.equal(IMAGES, before) and metadata == [{"category": "x"}, {}, {}]


def test_autocast_stays_outside() -> None:
    class Product(Reward):
        def __call__(self, images: Tensor, *_: Any) -> Tensor:
            flat = images.flatten(1)
            self.dtype = (flat @ flat.T).dtype
            return flat.mean(1)

    inside = Product()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guarded_scores(inside, IMAGES, PROMPTS, [{}] * 3)
        assert (IMAGES.flatten(1) @ IMAGES.flatten(1).T).dtype == torch.bfloat16
    assert inside.dtype == torch.float32


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
