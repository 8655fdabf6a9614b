"""CostLogger: model evaluations, seconds and memory beside every other number."""

from __future__ import annotations

import resource
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from aegpo.evaluations import evaluations_by_purpose, total_evaluations
from aegpo.training import Training


class CostLogger(L.Callback):
    """Logs what was spent, and prints the arithmetic of a batch when training starts.

    `cost/evaluations` counts one sample through the denoiser as one and an update as three
    (forward and backward), over all ranks, since the start of training; `cost/<purpose>` is its
    part. Held-out evaluation is counted in `cost/validation` and not in the sum.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Print prompts, images, transitions and optimizer steps of one iteration."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        prompts = data.batch_size
        images = int(pl_module.allocator(None, prompts).sum())
        updates = pl_module.inner_epochs * pl_module.updates_per_epoch
        epochs = trainer.max_epochs or 0
        iterations = data.batches_per_epoch * epochs
        whole = f"; {epochs} epochs make {iterations} iterations and {iterations * images} images"
        rank_zero_info(
            f"one iteration: {prompts} prompts, {images} images "
            f"({images / prompts:g} per prompt) of {pl_module.num_steps} steps, {updates} "
            f"optimizer steps in micro-batches of {pl_module.micro_batch_size} transitions, on "
            f"{trainer.world_size} process(es)\n"
            f"one epoch: {data.batches_per_epoch} iterations; {data.val_images} held-out images "
            f"every {trainer.check_val_every_n_epoch} epoch(s){whole if epochs > 0 else ''}\n"
            f"trainable parameters: "
            f"{sum(p.numel() for p in pl_module.policy.trainable_parameters()):,}"
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the costs of the iteration."""
        counter = pl_module.policy.evaluations
        counts = evaluations_by_purpose(counter, pl_module.device)
        metrics = {f"cost/{purpose}": float(count) for purpose, count in counts.items()}
        metrics["cost/evaluations"] = total_evaluations(counter, pl_module.device)
        for phase, seconds in pl_module.timer.reset().items():
            metrics[f"seconds/{phase}"] = seconds
        metrics["memory/peak_gib"] = _peak_gib()
        pl_module.log_dict(metrics, rank_zero_only=True)


def _peak_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB on Linux
