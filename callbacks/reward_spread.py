"""RewardSpread: the reward's spread at a prompt's last visit, in the place of ΔEntropy."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from aegpo.planning.counts import PlansEvaluations
from aegpo.prompts import PromptBatch
from aegpo.prompts.known_texts import KnownTexts
from aegpo.training import Training
from callbacks.prompt_ratings import by_prompt, publish_ratings


class RewardSpread(L.Callback, PlansEvaluations):
    """Publishes how much the rewards of a prompt's images differed when it was last drawn.

    The standard deviation of the group's rewards takes the place of ΔEntropy, for the allocator
    and the prompt sampler; the curve stays that of the probe, or 0 without one. It costs nothing,
    so it is what ΔEntropy has to beat. Prompts that were never drawn count as the mean of those
    that were; before the first of them there is no ΔEntropy.
    """

    publishes = ("delta",)

    def __init__(self) -> None:
        self.last: dict[int, float] = {}
        self.texts = KnownTexts()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Publish the spreads of this batch, as far as they are known."""
        for index in self.texts.replaced(batch):
            self.last.pop(index, None)
        publish_ratings(pl_module, batch, self.last)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Remember the spreads of this iteration, of all ranks."""
        self.last |= by_prompt(pl_module.last, lambda group: float(spread(group)))

    def state_dict(self) -> dict[str, Any]:
        """Return the spreads."""
        return {"last": dict(self.last), "texts": self.texts.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.last = dict(state_dict["last"])
        self.texts.load_state_dict(state_dict["texts"])


def spread(rewards: Tensor) -> Tensor:
    """Standard deviation of the rewards that are not missing, 0 for fewer than two.

    Args:
        rewards: Rewards of one group, NaN where missing, shape (n,).

    Returns:
        The unbiased standard deviation, a scalar.
    """
    finite = rewards[rewards.isfinite()].double()
    return finite.std() if len(finite) > 1 else finite.new_zeros(())
