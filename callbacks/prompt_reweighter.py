"""PromptReweighter: tells the prompt sampler what the probe read."""

from __future__ import annotations

from typing import Any

import lightning as L

from aegpo.prompts import PromptBatch
from aegpo.training import Training
from callbacks.order import require_probe


class PromptReweighter(L.Callback):
    """Passes each batch's ΔEntropy on to `trainer.datamodule.sampler`.

    It closes AEGPO's global loop: prompts whose attention the training has changed most are drawn
    more often. Delete it and the prompts are drawn uniformly.

    Raises:
        ValueError: If no `EntropyProbe` runs beside it.
    """

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        """Check that there will be something to pass on, before the policy is built."""
        require_probe(trainer, self)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Update the weights for the next draw."""
        entropy = pl_module.entropy
        if entropy is None or entropy.delta is None:
            return
        sampler = trainer.datamodule.sampler  # type: ignore[attr-defined]
        sampler.update(batch.index, entropy.delta)
        probabilities = sampler.probabilities()
        shares = probabilities / probabilities.sum()
        effective = float(1 / (shares**2).sum())
        pl_module.log("sampler/effective_prompts", effective, rank_zero_only=True)
        seen = float(sampler.delta_entropy.isfinite().float().mean())
        pl_module.log("sampler/seen_share", seen, rank_zero_only=True)
