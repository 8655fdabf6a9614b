"""Each promise is broken once by a reward made for it, and the checks say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.checks.check import check_reward
from aegpo.rewards.checks.samples import RewardSamples, shapes_samples
from aegpo.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from aegpo.rewards.shapes.judge import ShapesJudge
from aegpo.rewards.shapes.match import ShapesMatch

CPU = torch.device("cpu")
Metadata = list[dict[str, Any]]


class Good(Reward):
    """The mean of an image plus the length of its prompt; NaN for a broken image."""

    range = (0.0, 3.0)

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        lengths = torch.tensor([len(prompt) / 100 for prompt in prompts])
        return images.mean((1, 2, 3)) + lengths


def statuses(reward: Reward, samples: RewardSamples | None = None) -> dict[str, list[str]]:
    """Status and detail of every finding that is not ok, by name."""
    findings = list(check_reward(reward, samples or shapes_samples(), CPU))
    return {f.name: [f.status, f.detail] for f in findings if f.status != "ok"}


def test_a_good_reward_passes_every_check() -> None:
    findings = list(check_reward(Good(), shapes_samples(), CPU))
    assert {finding.status for finding in findings} == {"ok"}
    assert {finding.name for finding in findings} >= {
        *("setup", "shape and dtype", "side effects", "finite", "range", "determinism", "batch"),
        *("distinct", "other images", "other prompts and metadata", "8-bit images", "NaN image"),
        *("black image", "empty prompt", "no metadata", "time"),
    }


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (ShapesMatch(), {}),
        (ShapesJudge(), {}),
        (JpegCompressibility(80), {"other prompts and metadata": "warning"}),
        (JpegIncompressibility(), {"other prompts and metadata": "warning"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_our_own_rewards_keep_their_promises(reward: Reward, expected: dict[str, str]) -> None:
    assert {name: status for name, (status, _) in statuses(reward).items()} == expected


class WholeBatch(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        scores = super().__call__(images, prompts, metadata)
        return (scores - scores.mean()) / 10 + 1


class ByPlace(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        scores = super().__call__(images, prompts, metadata)
        return scores + torch.arange(len(prompts)) / len(prompts)


class Drifting(Good):
    calls = 0

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        self.calls += 1
        return super().__call__(images, prompts, metadata) + 0.1 * (self.calls % 2)


class GlobalDraw(Good):
    deterministic = False

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return super().__call__(images, prompts, metadata) + torch.rand(len(prompts))


class InPlace(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        scores = super().__call__(images, prompts, metadata)
        images.mul_(2)
        metadata[0]["seen"] = True
        return scores


class Blind(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return super().__call__(torch.zeros_like(images), prompts, metadata)


class Constant(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return torch.ones(len(prompts)).where(~images.isnan().flatten(1).any(1), torch.nan)


class SilentZero(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return super().__call__(images, prompts, metadata).nan_to_num(0.0)


class Fussy(Good):
    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        if bool(images.isnan().any()):
            raise FloatingPointError("NaN in the batch")
        return super().__call__(images, prompts, metadata)


class FineColors(Good):
    """Reads what 8 bits do not keep."""

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return (images * 255 % 1).mean((1, 2, 3)) + super().__call__(images, prompts, metadata) / 9


class WithGraph(Good):
    def __init__(self) -> None:
        self.weight = torch.ones((), requires_grad=True)

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        return super().__call__(images, prompts, metadata) * self.weight


class TooHigh(Good):
    range = (0.0, 0.5)


@pytest.mark.parametrize(
    ("reward", "name", "status", "detail"),
    [
        (WholeBatch(), "batch", "failed", "must not depend on the rest of the batch"),
        (ByPlace(), "batch", "failed", "in another order"),
        (Drifting(), "determinism", "failed", "the same call again: scores move by up to"),
        (GlobalDraw(), "side effects", "warning", "global generator"),
        (InPlace(), "side effects", "failed", "changed its images and metadata"),
        (Blind(), "other images", "warning", "no difference"),
        (Constant(), "distinct", "warning", "all 16 images score 1: nothing to learn from"),
        (SilentZero(), "NaN image", "warning", "a number to learn from; it must be NaN"),
        (Fussy(), "NaN image", "warning", "FloatingPointError: NaN in the batch; its whole batch"),
        (WholeBatch(), "NaN image", "failed", "another number of images has a score"),
        (FineColors(), "8-bit images", "warning", "saved images score otherwise"),
        (WithGraph(), "shape and dtype", "warning", "no_grad"),
        (TooHigh(), "range", "failed", "outside the declared 0 to 0.5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Reward) else "",
)
def test_each_broken_promise_is_found(reward: Reward, name: str, status: str, detail: str) -> None:
    found = statuses(reward)
    assert name in found, found
    assert found[name][0] == status and detail in found[name][1]


class Answer(Good):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(len(prompts))


@pytest.mark.parametrize(
    ("answer", "name", "detail"),
    [
        (lambda n: None, "shape and dtype", "it returned None; it must return a tensor"),
        (lambda n: ["good"] * n, "shape and dtype", "it returned a list"),
        (lambda n: torch.zeros(n, 1), "shape and dtype", "returned shape (16, 1) for 16 images"),
        (lambda n: torch.full((n,), torch.nan), "finite", "every score is NaN"),
        (lambda n: torch.full((n,), torch.inf), "finite", "16 of 16 scores are infinite"),
        (KeyError("color"), "scores", "raises KeyError: 'color'"),
    ],
)
def test_what_cannot_be_scored_ends_the_checks(answer: Any, name: str, detail: str) -> None:
    *before, last = check_reward(Answer(answer), shapes_samples(), CPU)
    assert (last.name, last.status) == (name, "failed") and detail in last.detail
    assert {finding.status for finding in before} == {"ok"}


class NeedsSetup(Good):
    device = None

    def setup(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        if self.device != images.device:
            raise RuntimeError("call setup first")
        return super().__call__(images, prompts, metadata)


class NoWeights(Good):
    def setup(self, device: torch.device) -> None:
        raise FileNotFoundError("no weights\nhere")


def test_setup_is_called_and_its_need_reported() -> None:
    first, *others = check_reward(NeedsSetup(), shapes_samples(), CPU)
    assert "without it the reward raises RuntimeError: call setup first" in first.detail
    assert {finding.status for finding in others} == {"ok"}
    (only,) = check_reward(NoWeights(), shapes_samples(), CPU)
    assert only.status == "failed" and "FileNotFoundError: no weights here" in only.detail


class BestOfGroup(Good):
    """1 for the best image of each prompt: needs whole groups."""

    groupwise = True

    def __call__(self, images: Tensor, prompts: list[str], metadata: Metadata) -> Tensor:
        means = super().__call__(images, prompts, metadata)
        best = {
            p: max(m for q, m in zip(prompts, means.tolist(), strict=True) if q == p or m != m)
            for p in set(prompts)
        }
        own = [float(m == best[p]) for p, m in zip(prompts, means.tolist(), strict=True)]
        return torch.tensor(own).where(means.isfinite(), torch.nan)


class OneByOne(BestOfGroup):
    groupwise = False


class AcrossGroups(WholeBatch):
    groupwise = True


def test_groupwise_rewards_are_checked_by_whole_groups() -> None:
    assert "batch" not in statuses(BestOfGroup())
    assert "one by one" in statuses(OneByOne())["batch"][1]
    assert statuses(AcrossGroups())["batch"][0] == "failed"


def test_one_prompt_is_enough_but_cannot_show_whether_it_matters() -> None:
    samples = shapes_samples(1)
    assert len(samples) == 4 and len(samples.groups) == 1
    names = {finding.name for finding in check_reward(Good(), samples, CPU)}
    assert "other prompts and metadata" not in names and "other images" in names
