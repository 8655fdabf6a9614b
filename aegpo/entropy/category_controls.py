"""ΔEntropy taken apart: which prompt inside its category, and which category.

ΔEntropy differs between categories of prompts (one object, several, relations), and a category is
known without any model. The product of the two parts is ΔEntropy, so that what a loop gains with
one of them alone says where its gain comes from.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from aegpo.entropy.controls import EntropyControl
from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch


class CategoryControl(EntropyControl):
    """Sets ΔEntropy against its running mean over the prompts drawn from the same category.

    The category is a prompt's metadata field `category`, "all" where there is none. The curve
    stays the true one.

    Args:
        decay: Weight of an iteration in the mean relative to the next one that draws the category,
            in [0, 1]. ΔEntropy grows with training, so the mean has to forget; 1 never does.

    Raises:
        ValueError: If `decay` is outside [0, 1].
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__("delta")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay} must lie in [0, 1]; 0.9 averages over ten iterations")
        self.decay = decay
        self.total: dict[str, float] = {}
        self.weight: dict[str, float] = {}

    def curve(self, curve: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """The true curve; see `EntropyControl.curve`."""
        return curve

    def delta(self, delta: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Take the batch into the means, then replace; see `EntropyControl.delta`."""
        categories = batch.categories
        for category in sorted(set(categories)):
            own = torch.tensor([name == category for name in categories], device="cpu")
            values = delta[own].double()
            kept = self.decay * self.weight.get(category, 0.0)
            self.total[category] = self.decay * self.total.get(category, 0.0) + float(values.sum())
            self.weight[category] = kept + len(values)
        means = [self.total[category] / self.weight[category] for category in categories]
        return self.replace(delta.double(), torch.tensor(means, dtype=torch.float64, device="cpu"))

    @abc.abstractmethod
    def replace(self, delta: Tensor, mean: Tensor) -> Tensor:
        """Say what takes the place of ΔEntropy.

        Args:
            delta: ΔEntropy of B prompts, shape (B,), float64.
            mean: Running mean of each prompt's category, the present batch included, shape (B,).

        Returns:
            Numbers of at least 0, shape (B,).
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the categories' running sums; see `EntropyControl.state_dict`."""
        return {"total": dict(self.total), "weight": dict(self.weight)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; see `EntropyControl.load_state_dict`."""
        self.total, self.weight = dict(state_dict["total"]), dict(state_dict["weight"])


class WithinCategory(CategoryControl):
    """ΔEntropy divided by the mean of its category: which prompt, and nothing of which category.

    The order inside a category stays, and every category has the mean 1. Where a category's mean
    is 0, as before the first update, all of its prompts get 0.

    Args:
        decay: How slowly the means forget, see `CategoryControl`.
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__(decay)

    def replace(self, delta: Tensor, mean: Tensor) -> Tensor:
        """The ratio to the mean; see `CategoryControl.replace`."""
        return torch.where(mean > 0, delta / mean, torch.zeros_like(delta))


class CategoryOnly(CategoryControl):
    """The mean of its category for every prompt: which category, and nothing of which prompt.

    Args:
        decay: How slowly the means forget, see `CategoryControl`.
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__(decay)

    def replace(self, delta: Tensor, mean: Tensor) -> Tensor:
        """The mean; see `CategoryControl.replace`."""
        return mean
