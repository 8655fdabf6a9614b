"""RunningEntropy: one curve for all prompts, the running mean over iterations."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.prompts import PromptBatch
from aegpo.training import Training
from callbacks.order import require_probe_before


class RunningEntropy(L.Callback):
    """Replaces each prompt's curve by the running mean of the batches' mean curves.

    A batch of few prompts has a noisy mean curve, so that close peaks change places from one
    iteration to the next; the running mean does not. All prompts then explore at the same steps,
    under any rule of `EntropyPeaks`; ΔEntropy stays each prompt's own. It stands after the
    callback that publishes `pl_module.entropy`, and costs nothing.

    Args:
        decay: Weight of an iteration relative to the next one, in [0, 1]: 0.9 averages over about
            the last ten iterations, 0 takes the batch alone, 1 the mean since the start. Weights
            add up to 1 from the first iteration on.

    Raises:
        ValueError: If `decay` is outside [0, 1].
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay} must lie in [0, 1]; 0.9 averages over ten iterations")
        self.decay = decay
        self.weight = 0.0
        self.total: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        """Check that a reading is published before this callback's turn."""
        require_probe_before(trainer, self)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Take this batch's curve into the mean, and publish it."""
        reading = pl_module.entropy
        if reading is None:
            return
        mean = reading.curve.double().mean(0)
        if self.total is not None and len(self.total) != len(mean):
            self.total, self.weight = None, 0.0  # the rollouts have other steps now
        self.total = mean if self.total is None else self.decay * self.total.to(mean) + mean
        self.weight = self.decay * self.weight + 1
        curve = (self.total / self.weight).to(reading.curve).expand_as(reading.curve)
        pl_module.entropy = EntropyReading(curve, reading.delta)

    def state_dict(self) -> dict[str, Any]:
        """Return the running sum of the curves and of their weights."""
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.total, self.weight = state_dict["total"], state_dict["weight"]
