"""Whose folder a command writes into: no two runs share one, and no command writes into a run's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_modules.cli.run_folder.reservation import TRAINED
from lightning_modules.commands.run_logs import CSV_LOG, read_scalars


def refuse_taken_folders(trainer: Trainer) -> None:
    """Keep a new run out of the folders of another, whose scores and checkpoints would mix.

    Args:
        trainer: The trainer of a run that continues none.

    Raises:
        ValueError: If a folder of its checkpoints holds one, or its log has an iteration.
    """
    if not trainer.is_global_zero:  # the others start when this one has written already
        return
    for folder in _taken(trainer):
        raise ValueError(
            f"{folder} holds a run already; go on with it by --ckpt_path last, or give another "
            "--run_name"
        )


def keep_earlier_tables(trainer: Trainer) -> None:
    """Put the table of a run aside that goes on: Lightning's CSVLogger begins by deleting it.

    Args:
        trainer: The trainer of the run.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger) or not trainer.is_global_zero:
            continue
        table = Path(logger.log_dir) / CSV_LOG
        if table.is_file():
            names = (table.with_stem(f"{table.stem}_{number}") for number in count(1))
            table.rename(next(name for name in names if not name.exists()))
            warnings.filterwarnings("ignore", message="Experiment logs directory")  # not true now


def log_in_own_folders(trainer: Trainer, command: str) -> None:
    """Have a command that does not train log below the folder of the run that it looks at.

    It may look at another checkpoint than the run's, and its scores are not the run's curve; two
    writers of one CSV table would delete each other's.

    Args:
        trainer: The command's trainer.
        command: Its name, and the name of the folder.
    """
    trainer.loggers = [
        _Below(logger, command) if isinstance(logger, CSVLogger) else logger
        for logger in trainer.loggers
    ]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger._sub_dir = os.path.join(logger.sub_dir or "", command)


class _Below(CSVLogger):
    """A CSVLogger one folder below another."""

    def __init__(self, logger: CSVLogger, name: str) -> None:
        super().__init__(
            logger.save_dir, logger.name, logger.version, flush_logs_every_n_steps=1_000_000
        )
        self._own_folder = name

    @property
    def log_dir(self) -> str:
        """The folder."""
        return os.path.join(super().log_dir, self._own_folder)


def _taken(trainer: Trainer) -> Iterator[Path]:
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder and any(Path(folder).glob("*.ckpt")):
            yield Path(folder)
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None)
        if folder and any(read_scalars(Path(folder), TRAINED).values()):
            yield Path(folder)
