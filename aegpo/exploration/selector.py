"""What chooses the steps that explore: one row of an `ExplorationSchedule` per prompt."""

from __future__ import annotations

import abc
import math

from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.schedule import ExplorationSchedule
from aegpo.noise import KeyedNoise


class StepSelector(abc.ABC):
    """Chooses the steps at which a prompt's rollouts explore.

    Args:
        eta: Noise level of the chosen steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at the chosen steps; 1 grows chains.

    Attributes:
        explores: Whether it ever chooses a step.

    Raises:
        ValueError: If `eta` is not above 0 or `branching` is below 1.
    """

    explores = True

    def __init__(self, eta: float = 0.7, branching: int = 1) -> None:
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(
                f"eta={eta} must be a finite number above 0: a step explores by drawing noise"
            )
        if branching < 1:
            raise ValueError(f"branching={branching} must be at least 1 (1 means no split)")
        self.eta = eta
        self.branching = branching

    @abc.abstractmethod
    def __call__(
        self, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor, num_steps: int
    ) -> ExplorationSchedule:
        """Choose the steps of B prompts.

        Args:
            entropy: Reading of the same B prompts, or None when nothing has been read yet.
            noise: Keyed noise of this iteration, for selectors that draw lots.
            index: Dataset row of each prompt, int64, shape (B,).
            num_steps: T, the number of denoising steps.

        Returns:
            A schedule of B rows and T steps.
        """

    def validate(self, num_steps: int) -> None:
        """Check that the choice is possible, before any model is loaded.

        Args:
            num_steps: T, the number of denoising steps.

        Raises:
            ValueError: If the selector needs more steps than there are.
        """
        if num_steps < 2:
            raise ValueError(
                f"num_steps={num_steps} leaves no step to explore, because the last one never "
                "does; use at least 2 denoising steps"
            )

    def _schedule(self, stochastic: Tensor) -> ExplorationSchedule:
        """This selector's noise level and branching at the marked steps, (B, T)."""
        return ExplorationSchedule.from_mask(stochastic, self.eta, self.branching)


def require_steps(name: str, count: int, num_steps: int) -> None:
    """Raise unless `count` steps can explore, in the words of the argument `name`."""
    if count > num_steps - 1:
        raise ValueError(
            f"{name}={count} needs at least {count + 1} denoising steps (the last one never "
            f"explores), but num_steps={num_steps}; lower {name} or raise num_steps"
        )
