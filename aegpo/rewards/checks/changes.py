"""A reward's scores under changes that must, or must not, make a difference."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aegpo.rewards.answers import as_scores
from aegpo.rewards.base import Reward
from aegpo.rewards.checks.samples import RewardSamples
from aegpo.utilities.findings import Finding

ROUNDING_TOLERANCE = 0.1
"""Rounding does change an image a little, so more than elsewhere is accepted; a warning above."""
_RANDOM = "not compared: declared random"


def score_samples(reward: Reward, samples: RewardSamples) -> Tensor:
    """Score copies of the samples, which the reward may then do to what it likes.

    Args:
        reward: The reward.
        samples: What it scores.

    Returns:
        fp32 scores on the CPU, shape (N,).

    Raises:
        UnusableAnswer: If no scores can be read from what it returns.
    """
    given = copy.deepcopy(samples)
    answer = reward(given.images, given.prompts, given.metadata)
    return as_scores(answer, len(samples), torch.device("cpu"))


def is_groupwise(reward: Reward) -> bool:
    """Whether the reward scores the images of a prompt together."""
    return bool(getattr(reward, "groupwise", False))


class ScoreComparison:
    """Compares the scores of changed calls with those of a first one.

    Distances are in standard deviations of the first scores (in units of 1 where these are all
    equal), because that is what group-relative advantages divide by.

    Args:
        reward: The reward, set up.
        samples: What it scored.
        scores: The scores on the CPU, shape (N,).
        tolerance: How far a score may move.
    """

    def __init__(
        self, reward: Reward, samples: RewardSamples, scores: Tensor, tolerance: float
    ) -> None:
        self.reward, self.samples, self.scores = reward, samples, scores
        self.unit = float(scores[scores.isfinite()].std(correction=0)) or 1.0
        self.tolerance = tolerance

    def repetition(self, again: Tensor) -> Iterator[Finding]:
        """Compare the same call a second time.

        Args:
            again: Its scores, shape (N,).

        Yields:
            One finding.
        """
        share = self._distance(again)
        detail = f"the same call again: {_shift(share)}"
        if not self.reward.deterministic:
            yield Finding("determinism", "ok", f"declared random; {detail}")
        elif share <= self.tolerance:
            yield Finding("determinism", "ok", detail)
        else:
            advice = "draw from a generator of fixed seed, or set deterministic = False"
            yield Finding("determinism", "failed", f"{detail}; {advice}")

    def batches(self) -> Iterator[Finding]:
        """Score one by one, or group by group, and in another order.

        Yields:
            One finding for each of the two.
        """
        count = len(self.samples)
        if is_groupwise(self.reward):  # groups stay together, and so do their images
            parts, told = self.samples.groups, "group by group"
            order = list(range(count))[::-1]
        else:
            parts, told = [[row] for row in range(count)], "one by one"
            order = torch.randperm(
                count, generator=torch.Generator(device="cpu").manual_seed(0), device="cpu"
            ).tolist()
        if not self.reward.deterministic:
            yield Finding("batch", "ok", _RANDOM)
            return
        for how, calls in ((told, parts), ("in another order", [order])):
            scores = torch.empty_like(self.scores)
            for rows in calls:
                scores[rows] = score_samples(self.reward, self.samples.select(rows))
            share = self._distance(scores)
            if share <= self.tolerance:
                yield Finding("batch", "ok", f"{how}: {_shift(share)}")
            else:
                advice = "a score must not depend on the rest of the batch"
                yield Finding("batch", "failed", f"{how}: {_shift(share)}; {advice}")

    def distinction(self) -> Iterator[Finding]:
        """Look for images that differ in score, and give each another prompt and another image.

        Yields:
            One finding for each of the three.
        """
        scored = self.scores[self.scores.isfinite()]
        distinct = len(set(scored.tolist()))
        if distinct == 1 and len(scored) > 1:
            detail = f"all {len(scored)} images score {float(scored[0]):.4g}: nothing to learn from"
            yield Finding("distinct", "warning", detail)
        else:
            detail = f"{distinct} scores among {len(scored)} images, std {self.unit:.3g}"
            yield Finding("distinct", "ok", detail)
        other = _rows_of_other_prompts(self.samples.prompts)
        changed = {"images": replace(self.samples, images=self.samples.images.roll(1, dims=0))}
        if other is not None:
            changed["prompts and metadata"] = self.samples.with_texts_of(other)
        for what, samples in changed.items():
            if not self.reward.deterministic:
                yield Finding(f"other {what}", "ok", _RANDOM)
            elif self._distance(score_samples(self.reward, samples)) == 0:
                yield Finding(f"other {what}", "warning", "make no difference to any score")
            else:
                yield Finding(f"other {what}", "ok", "make other scores")

    def rounding(self) -> Iterator[Finding]:
        """Score the images as an 8-bit file keeps them.

        Yields:
            One finding.
        """
        if not self.reward.deterministic:
            yield Finding("8-bit images", "ok", _RANDOM)
            return
        rounded = replace(self.samples, images=(self.samples.images * 255).round() / 255)
        share = self._distance(score_samples(self.reward, rounded))
        detail = f"after rounding: {_shift(share)}"
        if share <= ROUNDING_TOLERANCE:
            yield Finding("8-bit images", "ok", detail)
        else:
            advice = "saved images score otherwise than those of training"
            yield Finding("8-bit images", "warning", f"{detail}; {advice}")

    def broken_image(self) -> Iterator[Finding]:
        """Score with a first image of NaN; its own score must be missing, and no other.

        Yields:
            One finding.
        """
        images = self.samples.images.clone()
        images[0] = float("nan")
        try:
            scores = score_samples(self.reward, replace(self.samples, images=images))
        except Exception as error:  # a user's reward may raise anything
            advice = "its whole batch is then missing; NaN for it alone is better"
            yield Finding("NaN image", "warning", f"{describe_error(error)}; {advice}")
            return
        spoilt = self.samples.groups[0] if is_groupwise(self.reward) else [0]
        others = [row for row in range(len(scores)) if row not in spoilt]
        share = self._distance(scores, others)
        if share > self.tolerance and (self.reward.deterministic or share == float("inf")):
            yield Finding("NaN image", "failed", f"the scores of other images: {_shift(share)}")
        elif not bool(scores[0].isnan()):
            detail = f"scores {float(scores[0]):.4g}, a number to learn from; it must be NaN"
            yield Finding("NaN image", "warning", detail)
        else:
            yield Finding("NaN image", "ok", "is missing, and the others keep their scores")

    def _distance(self, scores: Tensor, rows: Sequence[int] | None = None) -> float:
        """Largest move of a score; infinite if a score is missing in one of the two only."""
        chosen = list(range(len(scores))) if rows is None else list(rows)
        scores, reference = scores[chosen], self.scores[chosen]
        if not torch.equal(scores.isnan(), reference.isnan()):
            return float("inf")
        moves = (scores - reference).nan_to_num(0.0).abs()
        return float(moves.max()) / self.unit if len(moves) else 0.0


def describe_error(error: Exception) -> str:
    """Say in one line what a reward raised."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 160 else f"{text[:159]}…"
    return f"raises {type(error).__name__}" + (f": {text}" if text else "")


def _shift(distance: float) -> str:
    if distance == 0:
        return "the same scores"
    if distance == float("inf"):
        return "another number of images has a score"
    return f"scores move by up to {distance:.2g} standard deviations"


def _rows_of_other_prompts(prompts: Sequence[str]) -> list[int] | None:
    """For each row the next one, in a circle, of another prompt; None if there is only one."""
    if len(set(prompts)) < 2:
        return None
    count = len(prompts)
    return [
        next(n % count for n in range(row, row + count) if prompts[n % count] != prompt)
        for row, prompt in enumerate(prompts)
    ]
