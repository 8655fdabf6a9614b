"""Optimizer steps that were skipped, and when it is enough."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rollout.finite import exploded

NAMED = 3
"""Prompts that the message names."""


class SkippedSteps:
    """Counts the optimizer steps in a row whose loss or gradient was not finite.

    Args:
        most: At how many in a row the run stops.

    Raises:
        ValueError: If it is below 1.
    """

    def __init__(self, most: int = 10) -> None:
        if most < 1:
            raise ValueError(f"model.max_skipped_steps={most} must be at least 1")
        self.most = most
        self.in_a_row = 0
        self._where = ""
        self._rows = torch.empty(0, dtype=torch.int64, device="cpu")

    def note(self, taken: bool, where: str, rows: Tensor, losses: Tensor) -> None:
        """Note an optimizer step; every rank calls it, and with the same `taken`.

        Args:
            taken: Whether the step was taken.
            where: Which one it was, for the message.
            rows: Row of each of this rank's samples in its own part of the batch, shape (n,).
            losses: Their losses, shape (n,).
        """
        self.in_a_row = 0 if taken else self.in_a_row + 1
        if taken:
            return
        lost = ~losses.isfinite()
        # A gradient of finite losses may be anybody's on this rank.
        self._where, self._rows = where, rows[lost if bool(lost.any()) else slice(None)].unique()

    def require_progress(
        self, policy: Policy, batch: PromptBatch, mine: Tensor, rewards: Tensor, row: Tensor
    ) -> None:
        """Raise if too many steps in a row were skipped, on every rank.

        Args:
            policy: The policy that is trained.
            batch: The prompts of all ranks.
            mine: This rank's rows of them.
            rewards: Reward of each of this rank's images, NaN where it failed, shape (N,).
            row: Row of each of these images in this rank's part, shape (N,).

        Raises:
            RuntimeError: If that is so; it names the step, the prompts and their rewards.
        """
        if self.in_a_row < self.most:
            return
        own = torch.isin(row, self._rows.to(row.device))
        whose = mine.to(row.device)[row[own]].double()
        table, _ = all_gather_rows(torch.stack([whose, rewards[own].double()], dim=1).cpu())
        names = []
        for number in table[:, 0].unique().long().tolist():
            of_prompt = table[table[:, 0] == number, 1]
            lowest, highest = float(of_prompt.min()), float(of_prompt.max())
            names.append(f"{batch.prompts[number]!r} (reward {lowest:.3g} to {highest:.3g})")
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise RuntimeError(
            f"{self.in_a_row} optimizer steps in a row were skipped because their loss or gradient "
            f"was not finite, as often as model.max_skipped_steps allows; the last was "
            f"{self._where}, with the prompts {', '.join(names[:NAMED])}{more}: {exploded(policy)}"
        )
