"""What is settled when all objects are built and nothing is loaded: checkpoint, limits, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.cli.checkpoints import find_checkpoint, what_is_done
from lightning_modules.cli.taken_folders import (
    keep_earlier_tables,
    log_in_own_folders,
    refuse_taken_folders,
)
from lightning_modules.commands import COMMANDS
from lightning_modules.commands.predictions import PredictionWriter


def is_ready(trainer: Trainer, model: LightningModule, command: str, section: Namespace) -> bool:
    """Find the checkpoint and the folders of a command, or refuse.

    Args:
        trainer: The command's trainer; one that does not train gets folders of its own.
        model: The configured module.
        command: The command.
        section: Its arguments as built; `ckpt_path` becomes the file that was found.

    Returns:
        False if there is nothing left to do, which has then been said.

    Raises:
        ValueError: If something was asked for that cannot be, or has no effect.
        FileNotFoundError: If there is no such checkpoint.
    """
    if COMMANDS[command].trainer != "idle" and section.get("ckpt_path") is not None:
        configs = [Path(str(file)) for file in section.get("config") or []]
        section["ckpt_path"] = find_checkpoint(trainer, command, section["ckpt_path"], configs)
    if command == "fit":
        return _may_train(trainer, model, section)
    if COMMANDS[command].method is None:
        log_in_own_folders(trainer, command)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if command == "predict" and not any(isinstance(c, BasePredictionWriter) for c in callbacks):
        callbacks.append(PredictionWriter())
    return True


def _may_train(trainer: Trainer, model: LightningModule, section: Namespace) -> bool:
    """Whether a training has something left to do."""
    if isinstance(model, AEGPOModule):
        _refuse_unused_settings(trainer)
    if section["ckpt_path"] is not None:
        done = what_is_done(trainer, section["ckpt_path"], section.get("weights_only"))
        if done is not None:
            rank_zero_info(done)
            return False
        keep_earlier_tables(trainer)
    elif not section.get("trainer.fast_dev_run"):
        refuse_taken_folders(trainer)
    return True


def _refuse_unused_settings(trainer: Trainer) -> None:
    """Refuse what has no effect where a module optimizes by itself, and say what has."""
    advice = "has no effect here: an iteration"
    if trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} {advice} scales gradients down "
            "to the norm model.max_grad_norm by itself; set that"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} {advice} "
            "accumulates over all its images by itself; for more of them set data.batch_size, or "
            "the images per prompt of model.allocator"
        )
