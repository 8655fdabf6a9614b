"""EMA: an average of the trained weights, which is what gets evaluated and exported."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from aegpo.policies.averaged import AveragedWeights, lerp
from aegpo.training import Training


class EMA(L.Callback):
    """Keeps an exponential moving average of the trained weights, as Flow-GRPO does.

    The n-th update moves the average towards the weights by ``1 - min(decay, (1 + n) / (10 + n))``
    (public code of arXiv 2505.05470; the ramp lets the first iterations count). The rollouts always
    use the weights themselves. Held-out images are drawn with the average, and a checkpoint holds
    both: `fit` goes on with the weights, every other command reads the average. It takes the memory
    of the trained tensors once more, and nothing of the frozen ones.

    Args:
        decay: Upper limit of the decay, in [0, 1).
        every_n_iterations: Iterations between two updates of the average.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, decay: float = 0.9, every_n_iterations: int = 1) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay={decay} must be at least 0 and below 1")
        if every_n_iterations < 1:
            raise ValueError(f"EMA every_n_iterations={every_n_iterations} must be 1 or more")
        self.decay = decay
        self.every_n_iterations = every_n_iterations
        self._updates = 0
        self._average = AveragedWeights(lerp)
        self._in_place = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Start at the present weights, or go on with a checkpoint's average."""
        self._average.load_state_dict(pl_module.averaged or {})
        pl_module.averaged = self._average.of(pl_module.policy)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average, every so many iterations."""
        if pl_module.iteration % self.every_n_iterations:
            return
        self._updates += 1
        ramp = (1 + self._updates) / (10 + self._updates)
        self._average.follow(pl_module.policy, min(self.decay, ramp))

    def on_validation_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Put the average in place, during training."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._in_place.enter_context(self._average.active(pl_module.policy))

    def on_validation_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Put the weights back."""
        self._in_place.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: Training, exception: BaseException
    ) -> None:
        """Put the weights back, for whoever saves them now."""
        self._in_place.close()

    def state_dict(self) -> dict[str, int]:
        """Updates so far; the average itself is the module's."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from `state_dict`."""
        self._updates = int(state_dict["updates"])
