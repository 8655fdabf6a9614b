"""A reward that only says whether another one is high enough."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.answers import as_scores
from aegpo.rewards.base import Reward


class Threshold(Reward):
    """1 where another reward reaches a bound, else 0: the verdict that a verifier gives.

    A group whose images all pass, or all fail, says nothing, so that many prompts are dead at one
    time or another. What the other reward could not score stays missing.

    Args:
        reward: What is looked at. Its name in logs gets the bound added: `shapes_judge_0.8`.
        at: The bound, in the reward's own units; finite, and inside the reward's range if it has
            one.

    Raises:
        ValueError: If the bound is not finite, or decides nothing.
    """

    range = (0.0, 1.0)

    def __init__(self, reward: Reward, at: float) -> None:
        low, high = reward.range or (-math.inf, math.inf)
        if not math.isfinite(at) or not low < at <= high:
            raise ValueError(
                f"Threshold: at={at} must be finite, above the lowest score of {reward.name} and "
                f"at most its highest ({low:g} to {high:g}), or every image gets the same"
            )
        self.reward, self.at = reward, at
        self.name = f"{reward.name}_{at:g}"
        self.deterministic, self.groupwise = reward.deterministic, reward.groupwise

    def setup(self, device: torch.device) -> None:
        """Prepare the other reward; see `Reward.setup`.

        Args:
            device: Where the images will be.
        """
        self.reward.setup(device)

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """1 or 0, NaN where the other reward is missing; see `Reward.__call__`."""
        scores = as_scores(
            self.reward(images, prompts, metadata), len(images), images.device
        ).float()
        return (scores >= self.at).to(scores).masked_fill(~scores.isfinite(), math.nan)
