"""Which checkpoint a command was asked for, found before anything is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from aegpo.utilities.checkpoint_files import CheckpointFiles
from lightning_modules.arguments.messages import did_you_mean
from lightning_modules.cli.best_checkpoint import best_checkpoint
from lightning_modules.cli.saved_config import is_saved_config

_NAMES = ("last", "best", "hpc")
"""Checkpoints that Lightning finds by what they are to a run."""


def find_checkpoint(
    trainer: Trainer, command: str, asked: str | None, configs: Sequence[Path] = ()
) -> str | None:
    """Find the checkpoint, or refuse, before a model is loaded.

    Args:
        trainer: The command's trainer, whose callbacks know where checkpoints are.
        command: The command; only a training may begin without the last checkpoint.
        asked: What ``--ckpt_path`` says: a file, an address, or a name such as last.
        configs: The given config files. One that a run has saved belongs to that run.

    Returns:
        The file, or what Lightning finds by its name; None for none.

    Raises:
        ValueError: If there is no such checkpoint, or it is another run's than the config.
        FileNotFoundError: If there is no such file.
    """
    if asked == "best":
        return best_checkpoint(trainer.checkpoint_callbacks)
    if asked is None or asked in _NAMES[1:] or "://" in asked:
        return asked
    if asked == "last":
        return _last(trainer, command, configs)
    path = Path(asked).expanduser()
    if path.is_dir() and asked:
        inside = sorted(_checkpoints(path), key=lambda file: (file.stem != "last", file))
        advice = f"give a file in it: {inside[0]}" if inside else "give the file of a checkpoint"
        raise ValueError(f"--ckpt_path {asked} is a folder; {advice}")
    if not path.is_file() or not asked:
        shown = asked or "''"
        near = did_you_mean(asked.lower(), _NAMES) if "." not in asked and "/" not in asked else ""
        raise FileNotFoundError(f"there is no checkpoint {shown}; give the file of one{near}")
    return str(path)


def what_is_done(trainer: Trainer, path: str, weights_only: bool | None) -> str | None:
    """Say what ended the run of a checkpoint, if that limit still holds.

    Args:
        trainer: The trainer that is to go on with it.
        path: The checkpoint's file.
        weights_only: As for the loading of the checkpoint.

    Returns:
        One line with what to raise; None if there is something left to train.
    """
    if "://" in path or path in _NAMES:
        return None
    saved = CheckpointFiles().load_checkpoint(path, weights_only=weights_only, lazy=True)
    try:
        epochs = int(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        steps = int(saved["global_step"])
    except (KeyError, TypeError):
        return None  # who loads it says what is wrong with it
    for name, limit, done in (
        ("max_epochs", trainer.max_epochs, epochs),
        ("max_steps", trainer.max_steps, steps),
    ):
        if limit is not None and 0 <= limit <= done:
            return (
                f"the run of {path} is finished: trainer.{name}={limit} is reached ({done} are "
                f"done); raise trainer.{name} to train on"
            )
    return None


def _last(trainer: Trainer, command: str, configs: Sequence[Path]) -> str | None:
    connector: Any = trainer._checkpoint_connector
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is none is said below
        found = connector._parse_ckpt_path(
            TrainerFn.FITTING, "last", model_provided=True, model_connected=False
        )
    beside = [file for file in _beside(configs) if file.stem == "last"]
    where = " and ".join(map(str, _folders(trainer))) or "no folder: no callback writes any"
    if found is None:
        moved = f"; {beside[0]} lies beside the config" if beside else ""
        told = f"--ckpt_path last: there is no last checkpoint in {where}"
        if command != "fit" or moved:
            raise ValueError(f"{told}{moved or '; give the file of one'}")
        rank_zero_info(f"{told}, so a new run begins")
        return None
    if beside and Path(found).resolve() not in [file.resolve() for file in beside]:
        raise ValueError(
            f"--ckpt_path last is {found}, but beside the given config of a run lies "
            f"{beside[0]}; give --ckpt_path {beside[0]}, or the config of the run that is meant"
        )
    return str(found)


def _folders(trainer: Trainer) -> Iterator[str]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            yield str(callback._ModelCheckpoint__resolve_ckpt_dir(trainer))  # type: ignore[attr-defined]


def _beside(configs: Sequence[Path]) -> list[Path]:
    """Checkpoints in the folders of configs that a run has saved."""
    saved = [config for config in configs if is_saved_config(config)]
    return [file for config in saved for file in _checkpoints(config.absolute().parent)]


def _checkpoints(folder: Path) -> list[Path]:
    return [*folder.glob("*.ckpt"), *folder.glob("*/*.ckpt")]
