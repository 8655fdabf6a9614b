"""RolloutProgressBar: reward, its change since the start and evaluations spent, at a glance."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from aegpo.utilities.checks import require_positive


class RolloutProgressBar(RichProgressBar):
    """Lightning's Rich bar with the three numbers that a reward run is watched by.

    Args:
        average_over: Iterations over which the reward is averaged, at the start and now.

    Raises:
        ValueError: If `average_over` is below one.
    """

    def __init__(self, average_over: int = 5) -> None:
        require_positive("average_over", average_over)
        super().__init__()
        self.average_over = average_over
        self._rewards: list[float] = []

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        logged = trainer.callback_metrics
        if "reward/mean" not in logged:
            return {}
        recent = self._rewards[-self.average_over :] or [float(logged["reward/mean"])]
        start = self._rewards[: self.average_over] or recent
        now = sum(recent) / len(recent)
        metrics: dict[str, Any] = {
            "reward": f"{now:.3f}",
            "change": f"{now - sum(start) / len(start):+.3f}",
        }
        if "cost/evaluations" in logged:
            metrics["evaluations"] = f"{int(logged['cost/evaluations']):,}"
        return metrics

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the reward, then draw."""
        if "reward/mean" in trainer.callback_metrics:
            self._rewards.append(float(trainer.callback_metrics["reward/mean"]))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the rewards so far."""
        return {"rewards": self._rewards}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._rewards = list(state_dict["rewards"])
