"""RunBoard: gives every run of the command line its charts and its row in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from aegpo.evaluations import total_evaluations
from aegpo.utilities.names import tag_part
from lightning_modules.cli.board.hyperparameters import Value, hyperparameters
from lightning_modules.cli.board.layout import custom_scalars
from lightning_modules.cli.board.trial import FOLDER, Trial
from lightning_modules.cli.saved_config import SaveRunConfig
from lightning_modules.commands.compare.run import compared_method
from lightning_modules.commands.run_logs import read_scalars
from lightning_modules.policy_module import PolicyModule

LAST, BEST = "last/", "best/"
"""Beginnings of the tags of held-out scores; the reward's name follows."""
EVALUATIONS, SECONDS = "spent/evaluations", "spent/seconds"


class RunBoard(L.Callback):
    """Writes a page of charts, and a row for HParams, wherever a `TensorBoardLogger` writes.

    The row has the run's settings, its latest and its best held-out scores, model evaluations and
    wall-clock seconds of training. It is brought up to date by every evaluation, so a run that was
    killed has it too; one that is resumed goes on with it.
    """

    def __init__(self) -> None:
        self._trials: list[Trial] = []
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._began, self._before = time.monotonic(), 0.0
        self._spent = 0.0
        self._laid_out = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the pages; of a resumed run with what it had before."""
        assert isinstance(pl_module, PolicyModule)
        self._began = time.monotonic()
        if not trainer.is_global_zero:
            return
        rewards = [tag_part(reward.name) for reward in pl_module.evaluation_rewards]
        for logger in _boards(trainer):
            folder = Path(logger.log_dir)
            if "://" in logger.log_dir:
                continue
            if pl_module.iteration:
                self._recall(folder / FOLDER, rewards, pl_module.iteration)
            trial = Trial(folder)
            method = compared_method(folder)
            scored = ", ".join(reward.name for reward in pl_module.evaluation_rewards)
            what: dict[str, Value] = {"scored_by": scored or "nothing"}
            what |= {} if method is None else {"method": method}
            trial.begin({**what, **_settings(trainer)})
            self._trials.append(trial)
        self._note(pl_module.iteration)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Lay the charts out, when it shows which numbers this method has."""
        if self._laid_out or not trainer.is_global_zero:
            return
        self._laid_out = True
        assert isinstance(pl_module, PolicyModule)
        rewards = [tag_part(reward.name) for reward in pl_module.evaluation_rewards]
        for logger in _boards(trainer):
            layout = custom_scalars(rewards, trainer.callback_metrics)
            logger.experiment.add_custom_scalars(layout)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the row up to date; the base's scores come before it is begun."""
        assert isinstance(pl_module, PolicyModule)
        if trainer.state.fn != TrainerFn.FITTING or not _boards(trainer):  # alike on all ranks
            return
        for tag, score in pl_module.held_out.metrics("val").items():
            if tag.count("/") == 1 and math.isfinite(score):
                name = tag.removeprefix("val/")
                self._last[name] = score
                self._best[name] = max(score, self._best.get(name, score))
        self._spent = total_evaluations(pl_module.policy.evaluations, pl_module.device)
        self._note(pl_module.iteration)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the row of a run that came to its end."""
        assert isinstance(pl_module, PolicyModule)
        if _boards(trainer):
            self._spent = total_evaluations(pl_module.policy.evaluations, pl_module.device)
        self._note(pl_module.iteration)
        self._end(whole=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the row of a run that was interrupted or failed."""
        self._end(whole=False)

    def _note(self, iteration: int) -> None:
        numbers = {f"{LAST}{name}": score for name, score in self._last.items()}
        numbers |= {f"{BEST}{name}": score for name, score in self._best.items()}
        numbers[SECONDS] = self._before + time.monotonic() - self._began
        numbers[EVALUATIONS] = self._spent
        for trial in self._trials:
            trial.note(numbers, iteration)

    def _end(self, whole: bool) -> None:
        for trial in self._trials:
            trial.end(whole)
        self._trials = []

    def _recall(self, folder: Path, rewards: list[str], done: int) -> None:
        """Read the row of the run that goes on, up to its checkpoint."""
        tags = [
            SECONDS,
            EVALUATIONS,
            *(f"{kind}{name}" for kind in (LAST, BEST) for name in rewards),
        ]
        latest = {
            tag: values[max(before)]
            for tag, values in read_scalars(folder, tags).items()
            if (before := [when for when in values if when <= done])
        }
        self._before = latest.get(SECONDS, 0.0)
        self._spent = latest.get(EVALUATIONS, 0.0)
        for name in rewards:
            if f"{BEST}{name}" in latest:
                self._best[name] = latest[f"{BEST}{name}"]
                self._last.setdefault(name, latest[f"{LAST}{name}"])


def _boards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _settings(trainer: L.Trainer) -> Mapping[str, Value]:
    """The run's settings, if the command line configured it."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    saved = next((one for one in callbacks if isinstance(one, SaveRunConfig)), None)
    return {} if saved is None else hyperparameters(saved.resolved())
