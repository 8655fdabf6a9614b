"""Group-relative advantages on ragged groups, with missing rewards.

GRPO (arXiv 2402.03300) compares an image only with the others of its own prompt. Groups are an
index vector, so they may have any sizes; the index may as well number (tree, depth) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aegpo.rewards.base import Scores

Scale = Literal["group", "global", "none"]


@dataclass(frozen=True, eq=False)
class Advantages:
    """Advantages and what was left out of them.

    Args:
        values: Advantage of each image, fp32, shape (N,); 0 where the reward is missing and in
            groups that carry no signal.
        zero_variance: True for groups that carry no signal: all rewards equal, or fewer than 2 of
            them; bool, shape (G,), in ascending order of the group's number.
        missing: Rewards that were not finite.
    """

    values: Tensor
    zero_variance: Tensor
    missing: int


@dataclass(frozen=True, eq=False)
class _GroupStatistics:
    """Moments of each group over its finite rewards, in float64."""

    group: Tensor  # (N,) from 0 to G - 1
    finite: Tensor  # (N,) bool
    centered: Tensor  # (N,) reward minus the group's mean, 0 where missing
    std: Tensor  # (G,) unbiased, 0 for fewer than 2 rewards
    zero_variance: Tensor  # (G,) bool


class GroupRelative:
    """Advantage = (reward - mean of its group) / scale, clipped.

    Args:
        scale: "group" divides by the group's own standard deviation (unbiased, as torch.std and
            DanceGRPO); "global" by that of all rewards of the call (biased, as flow_grpo); "none"
            does not divide, so that groups count by their spread.
        clip: Largest absolute advantage.
        eps: Added to the standard deviation.

    Raises:
        ValueError: If `scale` is unknown, `clip` is not above 0 or `eps` is negative.

    Examples:
        Group 0 has rewards 1, 2 and 3, of mean 2 and deviation 1, and one that is missing; group 1
        says nothing, because its rewards are equal:

        >>> rewards = torch.tensor([1.0, 2.0, 3.0, float("nan"), 0.5, 0.5])
        >>> group = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> compared = GroupRelative(eps=0.0)(rewards, group)
        >>> compared.values
        tensor([-1.,  0.,  1.,  0.,  0.,  0.])
        >>> compared.zero_variance, compared.missing
        (tensor([False,  True]), 1)

        Undivided, a group of ten times the spread counts ten times as much:

        >>> GroupRelative(scale="none", clip=50.0)(10 * rewards, group).values
        tensor([-10.,   0.,  10.,   0.,   0.,   0.])
    """

    def __init__(self, scale: Scale = "group", clip: float = 5.0, eps: float = 1e-4) -> None:
        if scale not in ("group", "global", "none"):
            raise ValueError(f"scale={scale!r} is unknown; use 'group', 'global' or 'none'")
        if not clip > 0:
            raise ValueError(f"clip={clip} must be above 0")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps={eps} must be a finite number of at least 0")
        self.scale = scale
        self.clip = clip
        self.eps = eps

    uses_parts = False
    """Whether `of_scores` looks at a composite reward's parts one by one."""

    def of_scores(self, scores: Scores, weights: Mapping[str, float], group: Tensor) -> Advantages:
        """Compare images that several rewards have scored; here by their sum.

        Args:
            scores: The reward of N images and its parts.
            weights: Weight of each part that counts, by name.
            group: Group of each image, any integers, shape (N,).

        Returns:
            Advantages of shape (N,) and the groups without signal.
        """
        del weights
        return self(scores.total, group)

    def __call__(self, rewards: Tensor, group: Tensor) -> Advantages:
        """Compare each reward with its group.

        With `scale="global"` the call must see the rewards of all ranks.

        Args:
            rewards: Rewards, any float type, shape (N,); a value that is not finite is missing:
                it enters no statistic and its advantage is 0.
            group: Group of each reward, any integers, shape (N,).

        Returns:
            Advantages of shape (N,) and the groups without signal.

        Raises:
            ValueError: If the shapes differ.
        """
        statistics = _group_statistics(rewards, group)
        values = statistics.centered
        if self.scale == "group":
            values = values / (statistics.std + self.eps)[statistics.group]
        elif self.scale == "global":
            known = rewards.detach().double()[statistics.finite]
            values = values / ((known - known.mean()).square().mean().sqrt() + self.eps)
        silent = statistics.zero_variance[statistics.group] | ~statistics.finite
        values = torch.where(silent, 0.0, values).clamp(-self.clip, self.clip)
        return Advantages(
            values=values.float(),
            zero_variance=statistics.zero_variance,
            missing=int((~statistics.finite).sum()),
        )


def _group_statistics(rewards: Tensor, group: Tensor) -> _GroupStatistics:
    if rewards.ndim != 1 or rewards.shape != group.shape:
        raise ValueError(
            "rewards and group must both have shape (N,), but got "
            f"{tuple(rewards.shape)} and {tuple(group.shape)}"
        )
    # float64: near-equal rewards of large mean would lose their spread in fp32.
    rewards = rewards.detach().double()
    ids, group = torch.unique(group, return_inverse=True)
    finite = torch.isfinite(rewards)
    rows, member = rewards[finite], group[finite]
    zeros = rewards.new_zeros(len(ids))
    count = zeros.index_add(0, member, torch.ones_like(rows))
    mean = zeros.index_add(0, member, rows) / count.clamp(min=1)
    centered = torch.where(finite, rewards - mean[group], 0.0)
    squares = zeros.index_add(0, member, centered[finite].square())
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    # Compared exactly: the mean of equal floats may be off by a rounding error.
    low = zeros.scatter_reduce(0, member, rows, "amin", include_self=False)
    high = zeros.scatter_reduce(0, member, rows, "amax", include_self=False)
    zero_variance = (count < 2) | (low == high) | (std == 0)
    return _GroupStatistics(group, finite, centered, std, zero_variance)
