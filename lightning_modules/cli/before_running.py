"""What is settled when all objects are built and nothing is loaded: checkpoint, limits, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.cli.board.run_board import RunBoard
from lightning_modules.cli.checkpoints import find_checkpoint, what_is_done
from lightning_modules.cli.ending.run_summary import RunSummary
from lightning_modules.cli.ending.score_the_last import ScoreTheLast
from lightning_modules.cli.run_folder.taken import (
    keep_earlier_tables,
    log_in_own_folders,
    refuse_taken_folders,
)
from lightning_modules.commands import COMMANDS
from lightning_modules.commands.predictions import PredictionWriter
from lightning_modules.policy_module import PolicyModule


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
    goes_on = section.get("ckpt_path") is not None
    if COMMANDS[command].trainer != "idle" and goes_on:
        configs = [Path(str(file)) for file in section.get("config") or []]
        section["ckpt_path"] = find_checkpoint(trainer, command, section["ckpt_path"], configs)
    if command == "fit":
        return _may_train(trainer, model, section, goes_on)
    if COMMANDS[command].method is None:
        log_in_own_folders(trainer, command)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if command == "predict" and not any(isinstance(c, BasePredictionWriter) for c in callbacks):
        callbacks.append(PredictionWriter())
    return True


def _may_train(trainer: Trainer, model: LightningModule, section: Namespace, goes_on: bool) -> bool:
    """Whether a training has something left to do.

    One that was killed before its first checkpoint is begun again by the same command line, with
    `--ckpt_path last` (`goes_on`), in its own folder.
    """
    _refuse_no_interval(trainer)
    if isinstance(model, AEGPOModule):
        _refuse_unused_settings(trainer)
        _try_optimizer(model)
    if section["ckpt_path"] is not None:
        done = what_is_done(trainer, section["ckpt_path"], section.get("weights_only"))
        if done is not None:
            rank_zero_info(done)
            return False
        keep_earlier_tables(trainer)
    elif not goes_on and not section.get("trainer.fast_dev_run"):
        refuse_taken_folders(trainer)
    if isinstance(model, PolicyModule):  # last: behind what may end the run
        trainer.callbacks += [ScoreTheLast(), RunBoard(), RunSummary()]  # type: ignore[attr-defined]
    return True


def _refuse_no_interval(trainer: Trainer) -> None:
    """Refuse intervals by which Lightning would divide in the middle of a run."""
    for name in ("check_val_every_n_epoch", "val_check_interval"):
        value = getattr(trainer, name)
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(
                f"trainer.{name}={value} must be above 0; trainer.limit_val_batches 0 switches the "
                "evaluation off"
            )
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if every < 0:
        raise ValueError(f"trainer.log_every_n_steps={every} must not be below 0")


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


def _try_optimizer(model: AEGPOModule) -> None:
    """Have the optimizer and the schedule refuse their settings before the policy is loaded."""
    optimizer = model.optimizer_factory([nn.Parameter(torch.zeros(1, device="cpu"))])
    if model.lr_scheduler_factory is not None:
        model.lr_scheduler_factory(optimizer)
