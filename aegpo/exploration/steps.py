"""The selectors that read nothing: all steps, none, given ones, and random ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.selector import StepSelector, require_steps
from aegpo.noise import KeyedNoise
from aegpo.utilities.checks import require_positive


class AllSteps(StepSelector):
    """Explores at every step but the last, as Flow-GRPO (arXiv 2505.05470) does.

    Args:
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at each step; 1 grows chains.
    """

    def __init__(self, eta: float = 0.7, branching: int = 1) -> None:
        super().__init__(eta, branching)

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark all steps but the last; see `StepSelector.mark`."""
        explores[:] = True


class NoSteps(StepSelector):
    """Explores nowhere: every step is deterministic, and a prompt's images differ by their start.

    For objectives that learn from images alone, as DiffusionNFT (arXiv 2509.16117); the policy
    gradient has nothing to learn from it.
    """

    explores = False

    def __init__(self) -> None:
        super().__init__()

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark no step; see `StepSelector.mark`."""


class FixedSteps(StepSelector):
    """Explores at the same given steps for every prompt.

    Args:
        steps: Step numbers, 0 is the noisiest; without repetition.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at each of the steps; 1 grows chains.

    Raises:
        ValueError: If `steps` is empty, repeats a step or contains a negative number.
    """

    def __init__(self, steps: Sequence[int], eta: float = 0.7, branching: int = 1) -> None:
        super().__init__(eta, branching)
        if not steps or len(set(steps)) != len(steps) or min(steps) < 0:
            raise ValueError(
                f"steps={list(steps)} must be one or more different step numbers from 0 up"
            )
        self.steps = sorted(steps)

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark the given steps; see `StepSelector.mark`."""
        explores[:, self.steps] = True

    def validate(self, num_steps: int) -> None:
        """Check that every step exists and is not the last; see `StepSelector.validate`."""
        super().validate(num_steps)
        if self.steps[-1] > num_steps - 2:
            raise ValueError(
                f"steps={self.steps} reaches beyond step {num_steps - 2}, the last that can "
                f"explore when num_steps={num_steps}; choose steps from 0 to {num_steps - 2}"
            )


class RandomSteps(StepSelector):
    """Explores at steps drawn at random, anew for each prompt and iteration.

    The control for entropy: the same number of steps, chosen without looking. The draw depends
    only on the run's seed, the iteration and the prompt.

    Args:
        num: Steps per prompt.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at each of the steps; 1 grows chains.

    Raises:
        ValueError: If `num` is below 1.
    """

    def __init__(self, num: int = 4, eta: float = 0.7, branching: int = 1) -> None:
        super().__init__(eta, branching)
        require_positive("num", num)
        self.num = num

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark `num` steps drawn per prompt; see `StepSelector.mark`."""
        for row, key in enumerate(index.tolist()):
            order = noise.permutation("steps", (key,), explores.shape[1])
            explores[row, order[: self.num]] = True

    def validate(self, num_steps: int) -> None:
        """Check that `num` steps can explore; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("num", self.num, num_steps)
