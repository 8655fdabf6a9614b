"""RewardSpread: the reward's spread at a prompt's last visit, in the place of ΔEntropy."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.entropy.reading import EntropyReading
from aegpo.planning.counts import PlansEvaluations
from aegpo.prompts import PromptBatch
from aegpo.prompts.known_texts import KnownTexts
from aegpo.training import Training


class RewardSpread(L.Callback, PlansEvaluations):
    """Publishes how much the rewards of a prompt's images differed when it was last drawn.

    The standard deviation of the group's rewards takes the place of ΔEntropy, for the allocator
    and the prompt sampler; the curve stays that of the probe, or 0 without one. It costs nothing,
    so it is what ΔEntropy has to beat. Prompts that were never drawn count as the mean of those
    that were; before the first of them there is no ΔEntropy.
    """

    publishes = ("delta",)

    def __init__(self) -> None:
        self.last: dict[int, float] = {}
        self.texts = KnownTexts()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Publish the spreads of this batch, as far as they are known."""
        for index in self.texts.replaced(batch):
            self.last.pop(index, None)
        reading = pl_module.entropy
        if self.last:
            mean = sum(self.last.values()) / len(self.last)
            delta = torch.tensor(
                [self.last.get(row, mean) for row in batch.index.tolist()], device="cpu"
            )
            curve = torch.zeros(len(batch), pl_module.num_steps, device="cpu")
            pl_module.entropy = EntropyReading(curve if reading is None else reading.curve, delta)
        elif reading is not None:
            pl_module.entropy = EntropyReading(reading.curve)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Remember the spreads of this iteration, of all ranks."""
        last = pl_module.last
        groups = [last.rewards[last.tree.row == row] for row in range(len(last.batch))]
        spreads = [float(spread(group)) for group in groups]  # of a rank without prompts, none
        rows = torch.stack(
            [
                last.batch.index.double().cpu(),
                torch.tensor(spreads, dtype=torch.float64, device="cpu"),
            ],
            dim=1,
        )
        gathered, _ = all_gather_rows(rows)
        for index, value in gathered.tolist():
            self.last[int(index)] = value

    def state_dict(self) -> dict[str, Any]:
        """Return the spreads."""
        return {"last": dict(self.last), "texts": self.texts.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.last = dict(state_dict["last"])
        self.texts.load_state_dict(state_dict["texts"])


def spread(rewards: Tensor) -> Tensor:
    """Standard deviation of the rewards that are not missing, 0 for fewer than two.

    Args:
        rewards: Rewards of one group, NaN where missing, shape (n,).

    Returns:
        The unbiased standard deviation, a scalar.
    """
    finite = rewards[rewards.isfinite()].double()
    return finite.std() if len(finite) > 1 else finite.new_zeros(())
