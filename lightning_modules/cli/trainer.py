"""The Trainer behind the command line: Lightning's, with every command of ours as a method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

import lightning_modules.training.fsdp2  # noqa: F401  # --trainer.strategy fsdp2
from aegpo.utilities.checkpoint_files import write_whole_checkpoints
from lightning_modules.cli.enduring_loggers import enduring
from lightning_modules.cli.process import busy_cores
from lightning_modules.cli.ranks.together import EndTogether, prepare
from lightning_modules.commands import COMMANDS, Command, TrainerKind

DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "aegpo"},
    },
    "log_every_n_steps": 1,  # a step is a whole rollout and its updates
}
"""What the Trainer does unless a config says otherwise."""


class AEGPOTrainer(Trainer):
    """A Trainer whose methods are Lightning's commands and, from the table `COMMANDS`, ours.

    Args:
        callbacks: As for Lightning's Trainer.
        without_callbacks: Class names of callbacks that are left out of the list, so that an
            overlay can take some away from whatever config it is laid over.
        rank_timeout: Seconds that a rank may wait for the others in a collective before all end,
            with a line that says where; longer than anything that one rank does alone. None for
            the strategy's own limit, 30 minutes.
        end_within: Seconds from SIGTERM or Ctrl-C to the end of all of several ranks. They end
            after the iteration they are in and save it, or where they are when the time is over.
        enable_model_summary: Whether Lightning lists modules and their parameters. Its table counts
            modules in train and eval mode and FLOPs, none of which says anything here; what is
            trained is in the lines that `CostLogger` prints.
        **settings: All other arguments of Lightning's Trainer.
    """

    def __init__(
        self,
        *,
        callbacks: list[Callback] | Callback | None = None,
        without_callbacks: list[str] | None = None,
        rank_timeout: float | None = None,
        end_within: float = 25.0,
        enable_model_summary: bool = False,
        **settings: Any,
    ) -> None:
        left = _left_in(_listed(callbacks), without_callbacks or [])
        super().__init__(callbacks=left, enable_model_summary=enable_model_summary, **settings)
        write_whole_checkpoints(self.strategy)
        enduring(self.loggers)
        prepare(self, rank_timeout, end_within)
        if self.world_size > 1:  # before all others: they look at what was agreed on
            self.callbacks.insert(0, EndTogether(end_within))  # type: ignore[attr-defined]


class _OnDemand:
    """A command's function, imported when it is asked for, and the trainer's method from then on.

    Each has libraries of its own, such as diffusers for `plan`, that no other command uses.
    """

    def __init__(self, command: Command) -> None:
        self._command = command

    def __get__(self, trainer: Trainer | None, owner: type[Trainer]) -> Any:
        setattr(AEGPOTrainer, self._command.name, self._command.function())
        return getattr(trainer or owner, self._command.name)


for _command in COMMANDS.values():
    if _command.method is not None:
        setattr(AEGPOTrainer, _command.name, _OnDemand(_command))


def command_settings(
    kind: TrainerKind, callbacks: Sequence[Callback] | Callback | None
) -> dict[str, Any]:
    """Say which settings a command's trainer has, whatever the config says of the run's.

    Args:
        kind: What the command's trainer may do.
        callbacks: The configured callbacks.

    Returns:
        Arguments of the Trainer.
    """
    if kind == "idle":  # with the run's limits and callbacks, and for machines that are not this
        single = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
        return {"logger": False, **single}
    # Whoever wrote checkpoints knows which is the last; in a training they would write others.
    kept = [callback for callback in _listed(callbacks) if isinstance(callback, Checkpoint)]
    kept = kept if kind in ("checkpoints", "every_rank") else []
    one: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    return {
        "logger": False,
        "callbacks": kept,
        "without_callbacks": None,
        "enable_checkpointing": bool(kept),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **({} if kind == "every_rank" else one),
        "max_epochs": 1,
        "max_steps": -1,
        "max_time": None,
        "limit_train_batches": 1,
        "limit_val_batches": 0,
        "limit_predict_batches": None,
        "num_sanity_val_steps": 0,
        "fast_dev_run": False,
    }


def say_busy_cores(trainer: Trainer) -> None:
    """Say in one line if this training's threads have too few cores, unless that is provided for.

    Args:
        trainer: The trainer that is about to run.
    """
    provided = "FreeCores" in [type(one).__name__ for one in trainer.callbacks]  # type: ignore[attr-defined]
    line = busy_cores(torch.get_num_threads())
    if line is not None and trainer.strategy.root_device.type == "cpu" and not provided:
        rank_zero_info(line)


def _left_in(callbacks: Sequence[Callback], without: Sequence[str]) -> list[Callback]:
    """The callbacks whose class is not named; a name that none of them has costs a warning."""
    present = [type(callback).__name__ for callback in callbacks]
    missing = [name for name in without if name not in present]
    if missing and callbacks:
        warnings.warn(
            f"trainer.without_callbacks names {', '.join(missing)}, which is not among the "
            f"callbacks: {', '.join(present)}",
            stacklevel=3,
        )
    return [callback for callback in callbacks if type(callback).__name__ not in without]


def _listed(callbacks: Sequence[Callback] | Callback | None) -> list[Callback]:
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
