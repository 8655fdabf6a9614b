"""Rewards that compare the images of one prompt with each other."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aegpo.rewards.base import Reward


def rows_by_prompt(prompts: Sequence[str]) -> dict[str, list[int]]:
    """Where each text stands in a call: the images that a groupwise reward has to see together."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return rows


class GroupReward(Reward):
    """Scores an image among the others of its prompt.

    Rows with the same prompt text are one group, wherever they stand in the call; the training
    always hands over whole groups. Held-out images are one to a prompt, so a groupwise reward is
    not measured on them.
    """

    groupwise = True

    @abc.abstractmethod
    def score_group(self, images: Tensor, prompt: str, metadata: dict[str, Any]) -> Tensor:
        """Score the images of one prompt.

        Args:
            images: (n, 3, H, W) in [0, 1].
            prompt: Their prompt.
            metadata: The dataset's metadata of that prompt.

        Returns:
            (n,) float32 scores; NaN marks an image that could not be scored.
        """

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score every group; see `Reward.__call__`."""
        scores = torch.full((len(images),), float("nan"), device=images.device)
        for prompt, rows in rows_by_prompt(prompts).items():
            group = torch.tensor(rows, device=images.device)
            scores[group] = self.score_group(images[group], prompt, metadata[rows[0]]).float()
        return scores


class GroupDiversity(GroupReward):
    """How far an image is from the others of its prompt: a counterweight to collapse.

    The mean over the others of the root mean square difference in color, after both were averaged
    down to `size` pixels a side.

    Args:
        size: Pixels a side at which images are compared.

    Raises:
        ValueError: If `size` is below 1.
    """

    range = (0.0, 1.0)

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"GroupDiversity size={size} must be 1 or more")
        self.size = size

    def score_group(self, images: Tensor, prompt: str, metadata: dict[str, Any]) -> Tensor:
        """Mean distance to the others, in [0, 1]; NaN for an image that is alone."""
        if len(images) < 2:
            return torch.full((len(images),), float("nan"), device=images.device)
        small = F.adaptive_avg_pool2d(images.float(), self.size).flatten(1)
        difference = (small[:, None] - small[None]).square().mean(2).sqrt()
        return difference.sum(1) / (len(images) - 1)


def group_diversity(images: Tensor, group: Tensor) -> Tensor:
    """Root mean square distance of a group's images from their mean.

    Args:
        images: Shape (N, 3, H, W) in [0, 1].
        group: Group of each image, shape (N,) int64.

    Returns:
        One value a group, in the order of the group numbers.
    """
    _, group = group.unique(return_inverse=True)
    pixels = images.flatten(1)
    count = torch.bincount(group).to(pixels)
    total = pixels.new_zeros(len(count), pixels.shape[1]).index_add(0, group, pixels)
    spread = (pixels - (total / count[:, None])[group]).square().mean(1)
    return (pixels.new_zeros(len(count)).index_add(0, group, spread) / count).sqrt()
