"""ScoreTheLast: no run ends with weights that nothing was measured with."""

from __future__ import annotations

from typing import Any

import lightning as L


class ScoreTheLast(L.Callback):
    """Has Lightning evaluate after the last iteration of a run, whatever the rhythm is.

    By itself Lightning evaluates at the end of every `check_val_every_n_epoch`-th epoch, so that a
    run of other lengths, or one that `max_steps` or a callback ends, leaves a model without a score
    and may miss its best. It stands behind all callbacks that may stop the run.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Ask for an evaluation if no iteration follows; the same on every rank."""
        if is_last_iteration(trainer):
            # Lightning looks at both after this hook.
            trainer.check_val_every_n_epoch = 1
            trainer.val_check_batch = 1


def is_last_iteration(trainer: L.Trainer) -> bool:
    """Whether the training ends with the iteration that has just been done.

    Args:
        trainer: The trainer, at the end of a batch.

    Returns:
        True where one of its limits is reached, or something told it to stop.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    is_last_epoch = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_epochs
    return stops or (is_last_epoch and trainer.is_last_batch) or 0 <= steps <= trainer.global_step
