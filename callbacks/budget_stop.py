"""BudgetStop: ends a run when its model evaluations are spent."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from aegpo.evaluations import total_evaluations
from aegpo.planning.counts import PlansEvaluations
from aegpo.training import Training
from aegpo.utilities.checks import require_positive


class BudgetStop(L.Callback, PlansEvaluations):
    """Ends training after the first iteration that brings `cost/evaluations` to a budget.

    Methods spend differently per iteration, so runs are comparable at equal evaluations and not at
    equal epochs. A last evaluation and a checkpoint follow the stop. Set `max_epochs: -1`, or the
    epochs may end first.

    Args:
        evaluations: Model evaluations of all ranks together, as `cost/evaluations` counts them.

    Raises:
        ValueError: If `evaluations` is below one.
    """

    def __init__(self, evaluations: int) -> None:
        require_positive("evaluations", evaluations)
        self.evaluations = self.evaluation_budget = evaluations

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Train no further where a resumed run has spent its budget before."""
        self._stop_if_spent(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where this iteration spent the rest."""
        self._stop_if_spent(trainer, pl_module)

    def _stop_if_spent(self, trainer: L.Trainer, pl_module: Training) -> None:
        spent = total_evaluations(pl_module.policy.evaluations, pl_module.device)
        if spent >= self.evaluations:
            rank_zero_info(f"{spent:,.0f} of {self.evaluations:,} model evaluations are spent")
            trainer.should_stop = True
