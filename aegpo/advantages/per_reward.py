"""Advantages of several rewards: each compared on its own scale, then added."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aegpo.advantages.group_relative import Advantages, GroupRelative, Scale
from aegpo.rewards.base import Scores


class PerReward(GroupRelative):
    """The weighted sum of each part's own group-relative advantage.

    In a `WeightedSum` the reward with the widest spread decides the ranking whatever the weights
    say; compared one by one, a weight means what it says. MixGRPO's "advantage aggregation"
    (arXiv 2507.21802, public code); with `normalize_batch` the GDPO form of Flow-Factory, which
    then divides by the deviation over the whole batch.

    Args:
        scale: See `GroupRelative`.
        clip: Largest absolute advantage, of each part and of the sum.
        eps: Added to a standard deviation.
        normalize_batch: Divide the sum by its standard deviation over all images.
    """

    uses_parts = True

    def __init__(
        self,
        scale: Scale = "group",
        clip: float = 5.0,
        eps: float = 1e-4,
        normalize_batch: bool = False,
    ) -> None:
        super().__init__(scale, clip, eps)
        self.normalize_batch = normalize_batch

    def of_scores(self, scores: Scores, weights: Mapping[str, float], group: Tensor) -> Advantages:
        """Compare by every part and add; see `GroupRelative.of_scores`.

        An image that a part could not score has no advantage by that part. A group is silent if it
        is so by every part.

        Args:
            scores: The composite reward of N images, which says what is missing, and its parts.
            weights: Weight of each part that counts, by name.
            group: Group of each image, any integers, shape (N,).

        Returns:
            Advantages of shape (N,) and the groups without signal.

        Raises:
            ValueError: If no part counts, or one that does was not scored.
        """
        if not weights or not weights.keys() <= scores.parts.keys():
            raise ValueError(
                f"PerReward needs a score for each part that counts, but got parts "
                f"{list(scores.parts)} and weights of {list(weights)}; train on a WeightedSum"
            )
        scored = [self(scores.parts[name], group) for name in weights]
        values = sum(
            (weight * one.values for weight, one in zip(weights.values(), scored, strict=True)),
            start=torch.zeros_like(scored[0].values),
        )
        present = scores.total.isfinite()
        if self.normalize_batch and bool(present.any()):
            values = values / (values[present].std(unbiased=False) + self.eps)
        values = torch.where(present, values, 0.0).clamp(-self.clip, self.clip)
        silent = torch.stack([one.zero_variance for one in scored]).all(dim=0)
        return Advantages(values, silent, int((~present).sum()))
