"""RolloutCheckpoint: a checkpoint every few epochs that a full disk cannot destroy."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from aegpo.distributed import all_reduce_sum
from aegpo.utilities.checkpoint_files import write_whole_checkpoints
from aegpo.utilities.names import tag_part
from callbacks.slurm import requeue_job

AUTO = "auto"
"""The monitor that is chosen when the run's rewards are known."""


class RolloutCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` every few epochs and at the end, and the best by a score if asked.

    Lightning counts optimizer steps, of which one iteration has several, so checkpoints go by
    epochs here. A checkpoint that cannot be written costs a warning, not the run, and the previous
    one stays. A run that is told to end (SIGTERM, as clusters send it) leaves a checkpoint of the
    iteration that it was at. In a job of SLURM the signal for requeueing (SIGUSR1) does the same
    and has the job requeued; Lightning's own handler would save in the middle of an iteration.

    Args:
        dirpath: Folder of the checkpoints; `--ckpt_path last` looks there.
        monitor: Logged score whose best checkpoint is kept beside the last; "auto" for the first
            held-out one that is not trained on, or the trained one where there is no other; None
            for the last only.
        every_n_epochs: Epochs between two checkpoints.

    Raises:
        ValueError: At the start, if `monitor` is "auto" and no reward is evaluated.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best" if monitor else None,
            # Before the module is known "auto" is any of a run's, as `--ckpt_path best` takes it.
            monitor=None if monitor == AUTO else monitor,
            mode="max",
            save_last=True,
            save_top_k=1 if monitor else 0,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._chooses = monitor == AUTO
        self._requeue = False
        self._scored = False
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the score; have checkpoints written aside and renamed; listen to SLURM."""
        if self._chooses and stage == "fit":
            self._choose_monitor(pl_module)
        super().setup(trainer, pl_module, stage)
        write_whole_checkpoints(trainer.strategy)
        # Before Lightning looks at the same: it leaves a signal alone that has a handler.
        cluster = trainer._accelerator_connector.cluster_environment
        if stage != "fit" or not isinstance(cluster, SLURMEnvironment) or self._handlers:
            return
        if cluster.auto_requeue and threading.current_thread() is threading.main_thread():
            told = cluster.requeue_signal or signal.SIGUSR1
            self._handlers[told] = signal.signal(told, self._told_to_requeue)

    @property
    def state_key(self) -> str:
        """The same before and after the monitor is chosen, for commands that never choose it."""
        chosen = self.monitor
        self.monitor = AUTO if self._chooses else chosen
        try:
            return super().state_key
        finally:
            self.monitor = chosen

    def _choose_monitor(self, pl_module: L.LightningModule) -> None:
        rewards = getattr(pl_module, "evaluation_rewards", [])
        if not rewards:
            raise ValueError(
                f"RolloutCheckpoint(monitor=auto) chooses among held-out rewards, and "
                f"{type(pl_module).__name__} has none; name a logged score, or null"
            )
        watched = rewards[min(1, len(rewards) - 1)]  # the one trained on stands first
        self.monitor = f"val/{tag_part(watched.name)}"

    def _told_to_requeue(self, *_: Any) -> None:
        self._requeue = True
        os.kill(os.getpid(), signal.SIGTERM)  # ends between two iterations

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signal back."""
        super().teardown(trainer, pl_module, stage)
        self._stop_listening()

    def _stop_listening(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what Lightning leaves out, the score of the best in this folder."""
        super().load_state_dict(state_dict)
        if self.dirpath == state_dict.get("dirpath"):
            self.current_score = state_dict["current_score"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is a new score."""
        self._scored = not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the best, if this is it, and always the last.

        A held-out score counts for the weights that it was measured with: one of an earlier epoch
        is not looked at, which a resumed run would not have.

        Lightning's own hook writes `last.ckpt` in the same epochs as the best only, and without a
        monitored score not before the end of training.
        """
        due = (trainer.current_epoch + 1) % (self.every_n_epochs or 1) == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            if self._scored or not (self.monitor or "").startswith("val"):
                self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        self._scored = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last, unless the last epoch just did."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write the last when the run is told to end, which is between two iterations.

        Not inside a validation: resumed there, it would score the rest of the prompts only.
        """
        told = isinstance(exception, SIGTERMException)
        if told and not trainer.validating and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            rank_zero_info(f"told to end: wrote {self.last_model_path}")
        if told and self._requeue and trainer.is_global_zero:
            rank_zero_info(requeue_job())
        self._stop_listening()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Write, and on all ranks go on alike where rank 0 could not."""
        saved = self._last_global_step_saved, self._last_checkpoint_saved
        with _put_up_with(trainer.strategy) as failures:
            super()._save_checkpoint(trainer, filepath)
        if all_reduce_sum(float(len(failures)), trainer.strategy.root_device) > 0:
            self._last_global_step_saved, self._last_checkpoint_saved = saved
        for error in failures:
            warnings.warn(
                f"checkpoint {filepath} could not be written ({error}); the previous one is "
                "untouched and training goes on",
                stacklevel=2,
            )


@contextmanager
def _put_up_with(strategy: Any) -> Iterator[list[OSError]]:
    """Inside, what a disk refuses is kept and not raised: a barrier of all ranks follows a save."""
    files, failures = strategy.checkpoint_io, list[OSError]()
    save = files.save_checkpoint

    def attempt(*args: Any, **options: Any) -> None:
        try:
            save(*args, **options)
        except OSError as error:
            failures.append(error)

    files.save_checkpoint = attempt
    try:
        yield failures
    finally:
        del files.save_checkpoint
