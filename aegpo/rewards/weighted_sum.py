"""Several rewards as one."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.answers import UnusableAnswer, as_scores
from aegpo.rewards.base import Reward, Scores


class WeightedSum(Reward):
    """The weighted sum of several rewards.

    `with_parts` has the unweighted scores of each reward under its name, too; rewards of the same
    name are numbered (`jpeg`, `jpeg_2`). An image that one part could not score (NaN) is missing
    in the sum, whatever the part's weight. A weight of 0 watches a reward without training on it.

    Args:
        rewards: The parts, one or more.
        weights: Factor of each part; 1 for all if left out. They need not sum to 1.

    Raises:
        ValueError: If there is no part, or the weights are not one finite number for each, one of
            them other than 0.
    """

    name = "weighted_sum"

    def __init__(self, rewards: list[Reward], weights: list[float] | None = None) -> None:
        weights = [1.0] * len(rewards) if weights is None else weights
        if not rewards or len(weights) != len(rewards):
            raise ValueError(
                f"{len(rewards)} rewards and {len(weights)} weights were given; a weighted sum "
                "needs at least one reward and one weight for each"
            )
        if not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"weights={weights} must all be finite numbers")
        if not any(weights):
            raise ValueError(
                f"weights={weights} are all 0, so that every image would be worth the same; a part "
                "of weight 0 is only watched, so give one of them another"
            )
        self.rewards = list(rewards)
        self.weights = list(weights)
        self.range = _sum_range(self.rewards, self.weights)
        self.deterministic = all(reward.deterministic for reward in self.rewards)
        self.groupwise = any(reward.groupwise for reward in self.rewards)
        self.part_names = _unique_names([reward.name for reward in self.rewards])
        named = zip(self.part_names, self.weights, strict=True)
        self.part_weights = {name: weight for name, weight in named if weight != 0}

    def setup(self, device: torch.device) -> None:
        """Prepare all parts; see `Reward.setup`.

        Args:
            device: Where the images will be.
        """
        for reward in self.rewards:
            reward.setup(device)

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """The sums alone; see `with_parts`."""
        return self.with_parts(images, prompts, metadata).total

    def with_parts(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Scores:
        """Score with all parts and add.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts, the prompt of each image.
            metadata: N dicts, the dataset's metadata of each prompt.

        Returns:
            (N,) float32 sums, NaN where a part could not score, and the parts, unweighted.

        Raises:
            UnusableAnswer: If a part does not return one score per image.
        """
        scores: dict[str, Tensor] = {}
        total = torch.zeros(len(images), device=images.device)
        for name, reward, weight in zip(self.part_names, self.rewards, self.weights, strict=True):
            try:
                part = as_scores(reward(images, prompts, metadata), len(images), images.device)
            except UnusableAnswer as error:
                raise UnusableAnswer(f"part {name!r} {error}") from None
            # An infinite score of weight 0 gives NaN as well: it did fail.
            total = total + weight * part
            scores[name] = part
        return Scores(total, scores)


def _unique_names(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    taken = set(names)
    unique = []
    for name in names:
        seen[name] += 1
        candidate = name
        # A given name may itself end in a number; count on until the new one is free.
        while seen[name] > 1 and (candidate := f"{name}_{seen[name]}") in taken:
            seen[name] += 1
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _sum_range(rewards: list[Reward], weights: list[float]) -> tuple[float, float] | None:
    """Bounds of the sum, or None where a part that counts has none."""
    low = high = 0.0
    for reward, weight in zip(rewards, weights, strict=True):
        if weight == 0:
            continue
        if reward.range is None:
            return None
        ends = sorted(weight * end for end in reward.range)
        low, high = low + ends[0], high + ends[1]
    return low, high
