"""Scores of the held-out images, by reward and by category, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from aegpo.prompts import PromptBatch
from aegpo.rollout import RolloutTree
from aegpo.utilities.names import tag_part


@dataclass(frozen=True)
class Evaluated:
    """One batch of held-out images as this rank drew it.

    Attributes:
        batch: The prompts, n rows.
        images: Their images, shape (n, 3, H, W) in [0, 1].
        latents: Their final latents, shape (n, C, h, w).
        scores: Each reward's scores, shape (n,).
    """

    batch: PromptBatch
    images: Tensor
    latents: Tensor
    scores: dict[str, Tensor]


@dataclass
class HeldOut:
    """Collects the scores of one evaluation: means over what could be scored.

    Attributes:
        means: The mean of each reward over each category and over all, by (reward, category), with
            None for all. Every rank holds all of them, whatever it drew: reading one is a
            collective.
        missing: How many scores of each reward are missing, likewise.
        images: How many images there were, likewise.
    """

    means: dict[tuple[str, str | None], MeanMetric] = field(default_factory=dict)
    missing: dict[str, SumMetric] = field(default_factory=dict)
    images: dict[str, SumMetric] = field(default_factory=dict)

    def add(
        self, batch: PromptBatch, own: PromptBatch, tree: RolloutTree, scores: dict[str, Tensor]
    ) -> Evaluated:
        """Add a batch.

        Args:
            batch: The whole batch, as every rank sees it.
            own: This rank's part of it.
            tree: The rollout of this rank's part.
            scores: Scores of this rank's images, each of shape (n,), NaN where one is missing.

        Returns:
            This rank's images with their scores, for callbacks.
        """
        for name, score in scores.items():
            self._mean(name, None, score.device).update(score)
            self._count(self.missing, name, score.device).update(score.isnan().sum())
            self._count(self.images, name, score.device).update(len(score))
            for category in sorted(set(batch.categories)):
                member = torch.tensor(
                    [one == category for one in own.categories], dtype=torch.bool, device="cpu"
                )
                self._mean(name, category, score.device).update(score[member.to(score.device)])
        assert tree.images is not None
        return Evaluated(own, tree.images, tree.latents, scores)

    def _mean(self, name: str, category: str | None, device: torch.device) -> MeanMetric:
        if (name, category) not in self.means:
            mean = MeanMetric(nan_strategy="ignore").to(device)
            # Sums of hundreds of scores; some accelerators have no float64.
            mean.set_dtype(torch.float32 if device.type == "mps" else torch.float64)
            self.means[name, category] = mean
        return self.means[name, category]

    @staticmethod
    def _count(counts: dict[str, SumMetric], name: str, device: torch.device) -> SumMetric:
        if name not in counts:
            counts[name] = SumMetric().to(device)
        return counts[name]

    def count_missing(self, most: float) -> int:
        """Count the scores that are missing, of all rewards and ranks.

        Args:
            most: Share of a reward's scores that may be missing: the mean of the others is biased.

        Returns:
            Their number.

        Raises:
            RuntimeError: If more are missing, on every rank.
        """
        lost = {name: int(count.compute()) for name, count in self.missing.items()}
        images = {name: int(count.compute()) for name, count in self.images.items()}
        for name, number in lost.items():
            if number > most * images[name]:
                raise RuntimeError(
                    f"reward {name!r} failed on {number} of {images[name]} held-out images, more "
                    f"than max_missing={most}; the warnings above say why"
                )
        return sum(lost.values())

    def metrics(self, stage: str = "val") -> dict[str, float]:
        """Return `<stage>/<reward>` and `<stage>/<reward>/<category>`: means of finite scores."""
        categories = sorted({category for _, category in self.means if category is not None})
        metrics: dict[str, float] = {}
        for name in [name for name, category in self.means if category is None]:
            tag = f"{stage}/{tag_part(name)}"
            metrics[tag] = float(self.means[name, None].compute())
            for category in categories if len(categories) > 1 else []:
                mean = self.means[name, category]
                metrics[f"{tag}/{tag_part(category)}"] = float(mean.compute())
        return metrics
