"""What chooses the steps that explore: one row of an `ExplorationSchedule` per prompt.

Every image of a prompt's group follows its row. The last transition is never eligible, so T steps
offer T - 1 places to explore. Schedules are made on the CPU, whatever device the entropy lies on.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.half_batches import HalvesByStep
from aegpo.exploration.schedule import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.remembering import Remembering


class StepSelector(Remembering, abc.ABC):
    """Chooses the steps at which a prompt's rollouts explore.

    Args:
        eta: Noise level of the chosen steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at the chosen steps; 1 grows chains.

    Attributes:
        explores: Whether it ever chooses a step.
        agreement: What learns from the gradients of the steps it chose; None if nothing does.
        gradient_copies: Copies of the trained gradients that it takes to measure that.

    Raises:
        ValueError: If `eta` is not above 0 or `branching` is below 1.
    """

    explores = True
    agreement: HalvesByStep | None = None
    gradient_copies = 0

    def __init__(self, eta: float = 0.7, branching: int = 1) -> None:
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(
                f"eta={eta} must be a finite number above 0: a step explores by drawing noise"
            )
        if branching < 1:
            raise ValueError(f"branching={branching} must be at least 1 (1 means no split)")
        self.eta = eta
        self.branching = branching

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
            A schedule of B rows and T steps, on the CPU.

        Raises:
            ValueError: If the selector needs more steps than there are, the reading has other
                prompts or steps than asked for, or no step was chosen.
        """
        self.validate(num_steps)
        shape = (len(index), num_steps)
        if entropy is not None:
            if entropy.curve.shape != shape:
                raise ValueError(
                    f"the entropy curve has shape {tuple(entropy.curve.shape)}, but {len(index)} "
                    f"prompts with num_steps={num_steps} need {shape}"
                )
            entropy = entropy.to("cpu")
        explores = torch.zeros(shape, dtype=torch.bool, device="cpu")
        self.mark(explores[:, :-1], entropy, noise, index)  # the last step is never eligible
        if self.explores and len(index) > 0 and not bool(explores.any()):
            raise ValueError(
                f"{type(self).__name__}.mark chose no step for any prompt; it has to set True into "
                "`explores` itself (explores[row, step] = True), and nothing it returns is read"
            )
        return ExplorationSchedule(
            eta=torch.where(explores, self.eta, 0.0).float(),
            branching=self.children(explores),
            priority=self.priority(entropy, shape),
        )

    @abc.abstractmethod
    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Say at which steps each of B prompts explores; this is all that a selector has to do.

        Args:
            explores: All False, bool, shape (B, T - 1); to be set to True where a step explores.
                The last of the T steps is left out, as it never does.
            entropy: Reading of the same B prompts and T steps, or None when nothing has been read
                yet; on the CPU.
            noise: Keyed noise of this iteration, for selectors that draw lots.
            index: Dataset row of each prompt, int64, shape (B,).
        """

    def children(self, explores: Tensor) -> Tensor:
        """Into how many children each node parts, at every step.

        Args:
            explores: What `mark` chose, bool, shape (B, T).

        Returns:
            int64, shape (B, T); here `branching` at every chosen step.
        """
        return torch.where(explores, self.branching, 1).long()

    def priority(self, entropy: EntropyReading | None, shape: tuple[int, int]) -> Tensor | None:
        """Which steps keep their split where a group is too small for a split at each of them.

        Args:
            entropy: As `mark` got it.
            shape: (B, T).

        Returns:
            The highest first, shape (B, T); None for the earliest first.
        """
        del entropy, shape
        return None

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


def require_steps(name: str, count: int, num_steps: int) -> None:
    """Raise unless `count` steps can explore, in the words of the argument `name`."""
    if count > num_steps - 1:
        raise ValueError(
            f"{name}={count} needs at least {count + 1} denoising steps (the last one never "
            f"explores), but num_steps={num_steps}; lower {name} or raise num_steps"
        )
