"""RolloutCheckpoint: a checkpoint every few epochs that a full disk cannot destroy."""

from __future__ import annotations

import warnings

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from aegpo.utilities.checkpoint_files import write_whole_checkpoints


class RolloutCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` every few epochs and at the end, and the best by a score if asked.

    Lightning counts optimizer steps, of which one iteration has several, so checkpoints go by
    epochs here. A checkpoint that cannot be written costs a warning, not the run, and the previous
    one stays. A run that is told to end (SIGTERM, as clusters send it) leaves a checkpoint of the
    iteration that it was at.

    Args:
        dirpath: Folder of the checkpoints; `--ckpt_path last` looks there.
        monitor: Logged score whose best checkpoint is kept beside the last; None for the last only.
        every_n_epochs: Epochs between two checkpoints.
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
            monitor=monitor,
            mode="max",
            save_last=True,
            save_top_k=1 if monitor else 0,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have checkpoints written aside and renamed, under any trainer."""
        super().setup(trainer, pl_module, stage)
        write_whole_checkpoints(trainer.strategy)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the best, if this is it, and always the last.

        Lightning's own hook writes `last.ckpt` in the same epochs as the best only, and without a
        monitored score not before the end of training.
        """
        due = (trainer.current_epoch + 1) % (self.every_n_epochs or 1) == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

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

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:
            warnings.warn(
                f"checkpoint {filepath} could not be written ({error}); the previous one is "
                "untouched and training goes on",
                stacklevel=2,
            )
