"""What an iteration logs about its rewards and its updates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aegpo.advantages import Advantages
from aegpo.distributed import all_gather_rows
from aegpo.objectives.samples import LossTerms
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Scores
from aegpo.utilities.names import tag_part
from lightning_modules.training.optimizer_step import Step


def reward_metrics(
    scores: Scores, groups: Tensor, batch: PromptBatch, advantages: Advantages
) -> dict[str, float]:
    """Summarize the rewards of an iteration.

    Args:
        scores: Scores of every image of all ranks, NaN where the reward failed, shape (N,).
        groups: Row of each image's prompt in the batch, shape (N,) int64.
        batch: The whole batch.
        advantages: The images' advantages.

    Returns:
        Tag and value, as docs/logging.md lists them.
    """
    rewards = scores.total
    finite = rewards[rewards.isfinite()]
    categories = batch.categories
    by_category = {}
    for category in sorted(set(categories)) if len(set(categories)) > 1 else []:
        member = torch.tensor([own == category for own in categories], device=groups.device)
        tag = f"reward/category/{tag_part(category)}"
        by_category[tag] = float(rewards[member[groups]].nanmean())
    parts = {
        f"reward/part/{tag_part(name)}": float(part.nanmean())
        for name, part in scores.parts.items()
    }
    return (
        by_category
        | parts
        | {
            "reward/mean": float(finite.mean()),
            "reward/std": float(finite.std(correction=0)) if len(finite) else math.nan,
            "reward/missing": float(rewards.isnan().sum()),
            "reward/zero_variance_groups": float(advantages.zero_variance.sum()),
            "rollout/images": float(len(rewards)),
        }
    )


class UpdateMeter:
    """Collects what the updates of one iteration did on this rank.

    Everything stays on the device until `metrics` is called, by every rank, also by one that had
    nothing to learn from.

    Args:
        device: Where the ranks can exchange numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.losses: list[LossTerms] = []
        self.steps: list[Step] = []
        self.first_update = 0

    def add(self, losses: list[LossTerms], step: Step) -> None:
        """Add an optimizer step, and the micro-batches whose gradient it was."""
        self.losses += losses
        if not self.steps:
            self.first_update = len(self.losses)
        self.steps.append(step)

    def metrics(self) -> dict[str, float]:
        """Return loss, ratio, clipping, KL and gradient norm of the iteration, over all ranks.

        `ratio/first_max_dev` is the largest deviation of a ratio from 1 before the first optimizer
        step: the check that rollout and update score alike.
        """
        norms = torch.tensor([step.norm for step in self.steps], device="cpu")
        metrics = {
            "update/gradient_norm": float(norms[norms.isfinite()].mean()),
            "update/skipped": float(sum(not step.taken for step in self.steps)),
        }
        rows = [
            self._columns(loss, number < max(self.first_update, 1))
            for number, loss in enumerate(self.losses)
        ]
        table, _ = all_gather_rows(torch.cat([torch.zeros(0, 7, device=self.device), *rows]))
        loss, kl, ratio, clipped, has_kl, has_ratio, first = table.t().contiguous().unbind(0)
        if len(loss) > 0:
            metrics |= {"update/loss": float(loss.mean()), "update/transitions": float(len(loss))}
        if bool(has_kl.any()):
            metrics["update/kl"] = float(kl.mean())
        if bool(has_ratio.any()):  # an objective without log-probs has none
            metrics |= {
                "ratio/mean": float(ratio.mean()),
                "ratio/std": float(ratio.std(correction=0)),
                "ratio/first_max_dev": float((ratio[first > 0] - 1).abs().max()),
                "ratio/clip_fraction": float(clipped.mean()),
            }
        return metrics

    @staticmethod
    def _columns(loss: LossTerms, first: bool) -> Tensor:
        """A micro-batch as rows of numbers, so that one gather carries all of them, (n, 7)."""
        zeros = torch.zeros_like(loss.loss)
        columns = [loss.loss, loss.kl, loss.ratio, loss.clipped]
        flags = [loss.kl is not None, loss.ratio is not None, first]
        filled = [zeros if column is None else column.to(zeros) for column in columns]
        return torch.stack([*filled, *(zeros + float(flag) for flag in flags)], dim=1)
