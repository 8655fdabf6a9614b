"""Controls: readings that look like attention entropy and say something else, or nothing.

What a loop gains with one of them in place of the true reading, it does not owe to entropy.
"""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch

Replaced = Literal["both", "curve", "delta"]
"""Which parts of a reading a control replaces."""


class EntropyControl(abc.ABC):
    """Replaces a reading by one of equal size.

    The curve's last step stays as it is: it never explores, so it is no choice of the selector.

    Args:
        signals: What is replaced: "curve" (which steps explore), "delta" (how many images a prompt
            gets and how often it is drawn) or "both".

    Raises:
        ValueError: If `signals` is unknown.
    """

    def __init__(self, signals: Replaced = "both") -> None:
        if signals not in ("both", "curve", "delta"):
            raise ValueError(f"signals={signals!r} is unknown; use 'both', 'curve' or 'delta'")
        self.signals = signals

    def __call__(
        self, reading: EntropyReading, noise: KeyedNoise, batch: PromptBatch
    ) -> EntropyReading:
        """Replace a reading.

        Args:
            reading: The true reading of B prompts.
            noise: Keyed noise of this iteration.
            batch: The same B prompts.

        Returns:
            A reading of the same prompts and steps.
        """
        curve, delta = reading.curve, reading.delta
        if self.signals != "delta":
            chosen = self.curve(curve[:, :-1].cpu(), noise, batch).to(curve)
            curve = torch.cat([chosen, curve[:, -1:]], dim=1)
        if self.signals != "curve" and delta is not None:
            delta = self.delta(delta.cpu(), noise, batch).to(delta)
        return EntropyReading(curve, delta)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on; nothing, unless a control remembers."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: B027
        """Continue from `state_dict`.

        Args:
            state_dict: What `state_dict` returned.
        """

    @abc.abstractmethod
    def curve(self, curve: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Replace the entropies of the steps that may explore, (B, T-1) on the CPU."""

    @abc.abstractmethod
    def delta(self, delta: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Replace the ΔEntropy of the prompts, (B,) on the CPU."""


class ShuffledEntropy(EntropyControl):
    """The same numbers in random order: each curve over its steps, ΔEntropy over the prompts.

    Drawn anew at every iteration. The values, and so everything but the order, are the true ones.

    Args:
        signals: What is shuffled, see `EntropyControl`.
    """

    def __init__(self, signals: Replaced = "both") -> None:
        super().__init__(signals)

    def curve(self, curve: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Shuffle each row by itself; see `EntropyControl.curve`."""
        orders = [
            noise.permutation("shuffled curve", (prompt,), curve.shape[1])
            for prompt in batch.index.tolist()
        ]
        return curve.gather(1, torch.stack(orders))

    def delta(self, delta: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Shuffle over the prompts; see `EntropyControl.delta`."""
        return delta[noise.permutation("shuffled delta", (), len(delta))]


class SwappedEntropy(EntropyControl):
    """Every prompt gets the reading of another prompt of the batch, the next one.

    The typical curve stays, and what it says about this very prompt is gone.

    Args:
        signals: What is swapped, see `EntropyControl`.
    """

    def __init__(self, signals: Replaced = "both") -> None:
        super().__init__(signals)

    def curve(self, curve: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """The next prompt's curve; see `EntropyControl.curve`."""
        return curve.roll(-1, dims=0)

    def delta(self, delta: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """The next prompt's ΔEntropy; see `EntropyControl.delta`."""
        return delta.roll(-1)


class InvertedEntropy(EntropyControl):
    """The highest becomes the lowest: high + low - value, per curve and over the prompts' ΔEntropy.

    Args:
        signals: What is inverted, see `EntropyControl`.
    """

    def __init__(self, signals: Replaced = "both") -> None:
        super().__init__(signals)

    def curve(self, curve: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Mirror each row in the middle of its range; see `EntropyControl.curve`."""
        return curve.amax(1, keepdim=True) + curve.amin(1, keepdim=True) - curve

    def delta(self, delta: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Mirror in the middle of the prompts' range; see `EntropyControl.delta`."""
        return (delta.amax() + delta.amin() - delta).clamp(min=0.0)


class RandomEntropy(EntropyControl):
    """Numbers drawn uniformly in [0, 1) in place of the true ones, anew at every iteration.

    With `signals: delta` and a `MedianSplitAllocator` it is the random allocation of equal budget.

    Args:
        signals: What is drawn, see `EntropyControl`.
    """

    def __init__(self, signals: Replaced = "both") -> None:
        super().__init__(signals)

    def curve(self, curve: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Uniform numbers; see `EntropyControl.curve`."""
        return noise.uniform("random curve", batch.index.cpu()[:, None], (curve.shape[1],))

    def delta(self, delta: Tensor, noise: KeyedNoise, batch: PromptBatch) -> Tensor:
        """Uniform numbers; see `EntropyControl.delta`."""
        return noise.uniform("random delta", batch.index.cpu()[:, None], ())
