"""Canary: cheap image statistics that move when a reward is being hacked."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.training import Training
from aegpo.utilities.names import tag_part

STATISTICS = ("edge_density", "color_entropy", "group_diversity", "missing")
"""What is logged beside the watched rewards, under `canary/`."""


class Canary(L.Callback):
    """Logs edge density, color entropy and diversity inside groups of the training images.

    None of them is trained on. A reward that is being hacked usually shows first as images that
    all look alike (`canary/group_diversity` falls), turn flat or noisy (`canary/edge_density`) or
    lose their colors (`canary/color_entropy`), while a reward that is only watched
    (`canary/<reward>`) stops following the one that is trained on.

    All are means over the images of all ranks, without those that have values that are not finite
    and, for a reward, those that it could not score, which `canary/missing` counts.

    Args:
        rewards: Rewards to measure on the training images without training on them.

    Raises:
        ValueError: If two of them share a name, or one has that of a statistic.
    """

    def __init__(self, rewards: list[Reward] | None = None) -> None:
        self.rewards = rewards or []
        names = [reward.name for reward in self.rewards]
        if len({*names, *STATISTICS}) < len(names) + len(STATISTICS):
            raise ValueError(
                f"Canary watches rewards named {names}; their names must differ from each other "
                f"and from {', '.join(STATISTICS)}"
            )

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        """Give the watched rewards their device, and the time that others have."""
        for reward in self.rewards:
            reward.time_limit = pl_module.reward_time_limit or reward.time_limit
            reward.setup(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the statistics of all ranks' images."""
        tree = pl_module.last.tree
        assert tree.images is not None  # training always decodes
        images, texts = tree.images.float(), pl_module.last.batch.repeat(tree.row)
        whole = images.isfinite().flatten(1).all(1)
        edges = edge_density(images).where(whole, float("nan"))
        colors = color_entropy(images.nan_to_num()).where(whole, float("nan"))
        scores = [
            guarded_scores(reward, tree.images, texts.prompts, texts.metadata).total
            for reward in self.rewards
            if len(images) > 0  # a rank may have no prompt
        ] or [edges.new_zeros(0)] * len(self.rewards)
        table, _ = all_gather_rows(torch.stack([edges, colors, *scores], dim=1))
        diversity, _ = all_gather_rows(pl_module.last.group_diversity)
        metrics = dict(
            zip(STATISTICS, (*table[:, :2].nanmean(0).tolist(), diversity.mean()), strict=False)
        )
        if self.rewards:
            names = [tag_part(reward.name) for reward in self.rewards]
            metrics |= dict(zip(names, table[:, 2:].nanmean(0).tolist(), strict=True))
            metrics["missing"] = table[:, 2:].isnan().sum()
        metrics = {f"canary/{name}": float(value) for name, value in metrics.items()}
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
