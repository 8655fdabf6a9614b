"""EvaluateByCost: held-out evaluations at equal distances of compute instead of epochs."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L

from aegpo.evaluations import total_evaluations
from aegpo.planning.counts import PlansEvaluations
from aegpo.training import Training
from aegpo.utilities.checks import require_positive


class EvaluateByCost(L.Callback, PlansEvaluations):
    """Evaluates after every so many model evaluations, whatever an iteration costs.

    Epochs of methods that spend unlike amounts per iteration end at different places of the cost
    axis. This callback takes the place of the evaluation at the end of an epoch (leave
    `check_val_every_n_epoch` at 1).

    Args:
        evaluations: Model evaluations of all ranks between two held-out evaluations.

    Raises:
        ValueError: If `evaluations` is below one.
    """

    def __init__(self, evaluations: int) -> None:
        require_positive("evaluations", evaluations)
        self.evaluations = self.evaluations_per_validation = evaluations
        self._mark = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Count on from what a resumed run has spent."""
        self._mark = self._passed(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have Lightning evaluate after this iteration if it passed a mark, and only then."""
        mark = self._passed(pl_module)
        # Lightning evaluates after every `val_check_batch`-th batch of an epoch, and looks now.
        trainer.val_check_batch = 1 if mark > self._mark else sys.maxsize
        self._mark = mark

    def _passed(self, pl_module: Training) -> int:
        spent = total_evaluations(pl_module.policy.evaluations, pl_module.device)
        return int(spent // self.evaluations)
