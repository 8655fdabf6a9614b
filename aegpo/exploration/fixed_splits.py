"""The selector of fixed trees: splits at given steps."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.selector import StepSelector
from aegpo.noise import KeyedNoise


class FixedSplits(StepSelector):
    """Splits at the same given steps for every prompt, as BranchGRPO does.

    BranchGRPO (arXiv 2509.06040) splits in two at steps 0, 3, 6 and 9 of 20, which makes 16 images
    of one starting noise, and draws noise at the steps between as well. With a list in `explore`
    the tree is a hybrid: noise at the splits and at these steps, ODE elsewhere. A group too small
    for all splits keeps the earliest (`ExplorationSchedule.fit`).

    Args:
        splits: Step numbers, 0 is the noisiest; without repetition.
        factors: Children of every node, one number for each split; None for `branching` at all.
        explore: Steps that draw noise without splitting, [] for none; None for all but the last.
        eta: Noise level of all these steps, in the units of the SDE in use; above 0.
        branching: Children of every node at each split; at least 2.

    Raises:
        ValueError: If `splits` is empty, repeats a step or contains a negative number, `explore`
            contains a negative number, or a factor is below 2 or missing.
    """

    def __init__(
        self,
        splits: list[int],
        factors: list[int] | None = None,
        explore: list[int] | None = None,
        eta: float = 0.7,
        branching: int = 2,
    ) -> None:
        super().__init__(eta, branching)
        if not splits or len(set(splits)) != len(splits) or min(splits) < 0:
            raise ValueError(
                f"splits={splits} must be one or more different step numbers from 0 up"
            )
        if explore and min(explore) < 0:
            raise ValueError(f"explore={explore} must be step numbers from 0 up")
        factors = [branching] * len(splits) if factors is None else factors
        if len(factors) != len(splits) or min(factors) < 2:
            raise ValueError(
                f"splits={splits} need one factor of at least 2 each, but the factors are {factors}"
            )
        self.splits = list(splits)
        self.factors = list(factors)
        self.explore = explore

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark the splits and the steps between; see `StepSelector.mark`."""
        between = list(range(explores.shape[1])) if self.explore is None else self.explore
        explores[:, self.splits + between] = True

    def children(self, explores: Tensor) -> Tensor:
        """Each split its own factor, the steps between none; see `StepSelector.children`."""
        branching = torch.ones_like(explores, dtype=torch.int64)
        branching[:, self.splits] = torch.tensor(self.factors, device="cpu")
        return branching

    def validate(self, num_steps: int) -> None:
        """Check that every step exists and is not the last; see `StepSelector.validate`."""
        super().validate(num_steps)
        for name, steps in {"splits": self.splits, "explore": self.explore or []}.items():
            if any(step > num_steps - 2 for step in steps):
                raise ValueError(
                    f"{name}={steps} reaches beyond step {num_steps - 2}, the last that can "
                    f"explore when num_steps={num_steps}; choose steps from 0 to {num_steps - 2}"
                )
