"""The TensorBoard files of a run, for callbacks that draw."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def tensorboard_writers(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """Yield the TensorBoard writers of this process (rank zero only)."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            yield logger.experiment
