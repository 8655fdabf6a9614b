"""Canary: cheap image statistics that move when a reward is being hacked."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.training import Training


class Canary(L.Callback):
    """Logs edge density, color entropy and diversity inside groups of the training images.

    None of them is trained on. A reward that is being hacked usually shows first as images that
    all look alike (`canary/group_diversity` falls), turn flat or noisy (`canary/edge_density`) or
    lose their colors (`canary/color_entropy`), while a reward that is only watched
    (`canary/<reward>`) stops following the one that is trained on.

    Args:
        rewards: Rewards to measure on the training images without training on them.
    """

    def __init__(self, rewards: list[Reward] | None = None) -> None:
        self.rewards = rewards or []

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        """Give the watched rewards their device."""
        for reward in self.rewards:
            reward.setup(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the statistics of this rank's images."""
        tree = pl_module.last.tree
        assert tree.images is not None  # training always decodes
        images = pl_module.last.batch.repeat(tree.row)
        metrics = {
            "canary/edge_density": float(edge_density(tree.images).mean()),
            "canary/color_entropy": float(color_entropy(tree.images).mean()),
            "canary/group_diversity": float(group_diversity(tree.images, tree.row).mean()),
        }
        for reward in self.rewards:
            scores = guarded_scores(reward, tree.images, images.prompts, images.metadata)
            metrics[f"canary/{reward.name}"] = float(scores.total.nanmean())
        pl_module.log_dict(metrics, rank_zero_only=True)


def edge_density(images: Tensor) -> Tensor:
    """Mean absolute difference of neighboring pixels, in [0, 1]; shape (N,)."""
    across = images.diff(dim=-1).abs().flatten(1).mean(1)
    return (across + images.diff(dim=-2).abs().flatten(1).mean(1)) / 2


def color_entropy(images: Tensor, levels: int = 4) -> Tensor:
    """Entropy of the histogram over `levels`³ colors, in nats; shape (N,)."""
    bins = (images.clamp(0, 1) * levels).long().clamp_max(levels - 1).flatten(2)
    code = bins[:, 0] * levels**2 + bins[:, 1] * levels + bins[:, 2]
    counts = torch.zeros(len(images), levels**3, device=images.device)
    counts.scatter_add_(1, code, torch.ones_like(code, dtype=counts.dtype))
    share = counts / code.shape[1]
    return -(share * share.clamp_min(1e-12).log()).sum(1)


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
