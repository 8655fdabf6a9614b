"""What an iteration logs about its rewards and its updates."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.advantages import Advantages
from aegpo.objectives.samples import LossTerms
from aegpo.prompts import PromptBatch


def reward_metrics(
    rewards: Tensor, groups: Tensor, batch: PromptBatch, advantages: Advantages
) -> dict[str, float]:
    """Summarize the rewards of an iteration.

    Args:
        rewards: Reward of every image of all ranks, NaN where it failed, shape (N,).
        groups: Row of each image's prompt in the batch, shape (N,) int64.
        batch: The whole batch.
        advantages: The images' advantages.

    Returns:
        Tag and value, as docs/logging.md lists them.
    """
    finite = rewards[rewards.isfinite()]
    categories = batch.categories
    by_category = {}
    for category in sorted(set(categories)) if len(set(categories)) > 1 else []:
        member = torch.tensor([own == category for own in categories], device=groups.device)
        by_category[f"reward/{category}"] = float(rewards[member[groups]].nanmean())
    return by_category | {
        "reward/mean": float(finite.mean()),
        "reward/std": float(finite.std(correction=0)),
        "reward/missing": float(rewards.isnan().sum()),
        "reward/zero_variance_groups": float(advantages.zero_variance.sum()),
        "rollout/images": float(len(rewards)),
    }


class UpdateMeter:
    """Collects what the updates of one iteration did; everything stays on the device until read."""

    def __init__(self) -> None:
        self.losses: list[LossTerms] = []
        self.norms: list[float] = []
        self.first_update = 0

    def add(self, loss: LossTerms) -> None:
        """Add a micro-batch."""
        self.losses.append(loss._replace(loss=loss.loss.detach()))

    def step(self, gradient_norm: float) -> None:
        """Note that an optimizer step ended; `gradient_norm` is from before clipping."""
        if not self.norms:
            self.first_update = len(self.losses)
        self.norms.append(gradient_norm)

    def metrics(self) -> dict[str, float]:
        """Return loss, ratio, clipping, KL and gradient norm of the iteration.

        `ratio/first_max_dev` is the largest deviation of a ratio from 1 before the first optimizer
        step: the check that rollout and update score alike.
        """
        norms = torch.tensor(self.norms)
        metrics = {
            "update/gradient_norm": float(norms[norms.isfinite()].mean()),
            "update/skipped": float((~norms.isfinite()).sum()),
        }
        if not self.losses:
            return metrics
        losses = torch.cat([loss.loss for loss in self.losses])
        metrics |= {"update/loss": float(losses.mean()), "update/transitions": float(len(losses))}
        metrics |= self._ratio_metrics()
        divergences = [loss.kl for loss in self.losses if loss.kl is not None]
        if divergences:
            metrics["update/kl"] = float(torch.cat(divergences).mean())
        return metrics

    def _ratio_metrics(self) -> dict[str, float]:
        ratios = [loss.ratio for loss in self.losses if loss.ratio is not None]
        if not ratios:  # an objective without log-probs
            return {}
        first = torch.cat(ratios[: max(self.first_update, 1)])
        ratio = torch.cat(ratios)
        clipped = torch.cat([loss.clipped for loss in self.losses if loss.clipped is not None])
        return {
            "ratio/mean": float(ratio.mean()),
            "ratio/std": float(ratio.std(correction=0)),
            "ratio/first_max_dev": float((first - 1).abs().max()),
            "ratio/clip_fraction": float(clipped.float().mean()),
        }
