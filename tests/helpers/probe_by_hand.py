"""The entropy probe's hook called by hand, to choose each iteration's prompts."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from tiny_training import PROMPTS

from aegpo.entropy import EntropyRecorder
from aegpo.prompts import PromptBatch
from callbacks.entropy_probe import EntropyProbe

TRAINER = L.Trainer(
    accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
"""Lightning's own."""


def batch(*rows: int) -> PromptBatch:
    """These of the twelve prompts."""
    return PromptBatch([PROMPTS[row] for row in rows], torch.tensor(rows), [{}] * len(rows))


def probe(**settings: Any) -> EntropyProbe:
    """A probe that reads every row."""
    return EntropyProbe(EntropyRecorder(rows=None), **settings)


def read(own: EntropyProbe, module: Any, rows: tuple[int, ...], iteration: int = 0) -> Any:
    """What the probe publishes when an iteration with these prompts begins."""
    module.iteration = iteration
    own.on_train_batch_start(TRAINER, module, batch(*rows), 0)
    return module.entropy


def shake(module: Any) -> None:
    """Change what the adapters do."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.policy.trainable_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
