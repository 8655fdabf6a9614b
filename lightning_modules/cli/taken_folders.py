"""Whether a new run would write into the folders of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_modules.commands.run_logs import read_scalars

_TRAINED = ("cost/evaluations", "reward/mean")
"""Tags that a run has from its first iteration on; one that was refused before has none."""


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
            f"{folder} holds a run already; go on with it by --ckpt_path last, or move it away to "
            "start another there"
        )


def _taken(trainer: Trainer) -> Iterator[Path]:
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder and any(Path(folder).glob("*.ckpt")):
            yield Path(folder)
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None)
        if folder and any(read_scalars(Path(folder), _TRAINED).values()):
            yield Path(folder)
