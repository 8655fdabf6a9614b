"""Scores of the held-out images, by reward and by category, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.prompts import PromptBatch
from aegpo.rollout import RolloutTree


@dataclass(frozen=True)
class Evaluated:
    """One batch of held-out images as this rank drew it.

    Attributes:
        batch: The prompts, n rows.
        images: Their images, shape (n, 3, H, W) in [0, 1].
        scores: Each reward's scores, shape (n,).
    """

    batch: PromptBatch
    images: Tensor
    scores: dict[str, Tensor]


@dataclass
class HeldOut:
    """Collects the scores of one evaluation.

    Attributes:
        categories: Category of every image of all ranks, by its index.
        rows: (index, score of each reward) of this rank's images, float64.
        names: Names of the rewards.
    """

    categories: dict[int, str] = field(default_factory=dict)
    rows: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(
        self, batch: PromptBatch, own: PromptBatch, tree: RolloutTree, scores: dict[str, Tensor]
    ) -> Evaluated:
        """Add a batch.

        Args:
            batch: The whole batch, as every rank sees it.
            own: This rank's part of it.
            tree: The rollout of this rank's part.
            scores: Scores of this rank's images, each of shape (n,).

        Returns:
            This rank's images with their scores, for callbacks.
        """
        for index, metadata in zip(batch.index.tolist(), batch.metadata, strict=True):
            self.categories[index] = str(metadata.get("category", "all"))
        self.names = list(scores)
        columns = [own.index.cpu(), *(score.cpu() for score in scores.values())]
        self.rows.append(torch.stack([column.double() for column in columns], dim=1))
        assert tree.images is not None
        return Evaluated(own, tree.images, scores)

    def metrics(self, stage: str = "val") -> dict[str, float]:
        """Return `<stage>/<reward>` and `<stage>/<reward>/<category>`: means of finite scores."""
        if not self.rows:
            return {}
        rows, _ = all_gather_rows(torch.cat(self.rows))
        categories = [self.categories[int(index)] for index in rows[:, 0]]
        metrics: dict[str, float] = {}
        for column, name in enumerate(self.names, start=1):
            metrics[f"{stage}/{name}"] = float(rows[:, column].nanmean())
            for category in sorted(set(categories)) if len(set(categories)) > 1 else []:
                member = torch.tensor([own == category for own in categories])
                metrics[f"{stage}/{name}/{category}"] = float(rows[member, column].nanmean())
        return metrics
