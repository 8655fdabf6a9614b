"""CostLogger: model evaluations, seconds and memory beside every other number."""

from __future__ import annotations

import math
import resource
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_info

from aegpo.evaluations import evaluations_by_purpose, total_evaluations
from aegpo.planning.counts import limited_batches
from aegpo.samplers import sampler_name
from aegpo.training import Training


class CostLogger(L.Callback):
    """Logs what was spent, and prints the arithmetic of a batch when training starts.

    `cost/evaluations` counts one sample through the denoiser as one and an update as three
    (forward and backward), over all ranks, since the start of training; `cost/<purpose>` is its
    part. Held-out evaluation is counted in `cost/validation` and not in the sum. `cost/images`,
    `cost/rewards` and `cost/images_trained` count what was drawn, scored and learned from.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Print prompts, images, transitions and optimizer steps of one iteration."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        prompts = data.batch_size
        images = int(pl_module.allocator(None, prompts).sum())
        updates = pl_module.inner_epochs * pl_module.updates_per_epoch
        by = "" if pl_module.sampler is None else f" by {sampler_name(pl_module.sampler)}"
        if pl_module.selection.selects:
            by += f", trained on {pl_module.selection}"
        warmup = pl_module.warmup
        if warmup is not None and warmup.lasts(pl_module.iteration):
            by += f" (the first {warmup.iterations} iterations)"
        per_epoch = limited_batches(data.batches_per_epoch, trainer.limit_train_batches)
        end = _end_of_run(trainer, per_epoch, updates, images)
        rank_zero_info(
            f"one iteration: {prompts} prompts, {images} images "
            f"({images / prompts:g} per prompt) of {pl_module.num_steps} steps{by}, {updates} "
            f"optimizer steps in micro-batches of {pl_module.micro_batch_size} transitions, on "
            f"{trainer.world_size} process(es)\n"
            f"one epoch: {per_epoch} iterations; {data.val_images} held-out images "
            f"every {trainer.check_val_every_n_epoch} epoch(s){end}\n"
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
        total = metrics["cost/evaluations"] = total_evaluations(counter, pl_module.device)
        images = pl_module.images.over_ranks(pl_module.device)
        metrics |= {f"cost/{kind}": float(count) for kind, count in images.items()}
        for name, kind in (("image", "images"), ("trained_image", "images_trained")):
            if images.get(kind):
                metrics[f"cost/per_{name}"] = total / images[kind]
        for phase, seconds in pl_module.timer.reset().items():
            metrics[f"seconds/{phase}"] = seconds
        metrics["memory/peak_gib"] = _peak_gib()
        pl_module.log_dict(metrics, rank_zero_only=True)


def _end_of_run(trainer: L.Trainer, per_epoch: int, updates: int, images: int) -> str:
    """Where the first of the trainer's limits ends the run, as clauses; empty without any."""
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits.append((trainer.max_epochs * per_epoch, f"{trainer.max_epochs} epochs"))
    if trainer.max_steps > 0:  # optimizer steps, looked at after each iteration
        limits.append((math.ceil(trainer.max_steps / updates), f"max_steps: {trainer.max_steps}"))
    clause = ""
    if limits:
        iterations, name = min(limits)
        make = "make" if name.endswith("epochs") else "makes"
        clause = f"; {name} {make} {iterations} iterations and {iterations * images} images"
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    seconds = [left for one in timers if (left := one.time_remaining()) is not None]
    return clause + (f"; ends after {min(seconds):,.0f} s at the latest" if seconds else "")


def _peak_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB on Linux
