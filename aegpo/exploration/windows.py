"""Windows of stochastic steps, moving (MixGRPO) or drawn at random (Flow-GRPO-Fast)."""

from __future__ import annotations

import math

from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.selector import StepSelector, require_steps
from aegpo.noise import KeyedNoise
from aegpo.utilities.checks import require_positive


class RandomWindow(StepSelector):
    """Explores in a window that begins at a random step, anew for each prompt and iteration.

    Flow-GRPO-Fast, and the random arm of MixGRPO (arXiv 2507.21802). The draw depends only on the
    run's seed, the iteration and the prompt.

    Args:
        width: Consecutive steps that explore.
        end: The window lies in steps 0 to `end` - 1; None for all steps that can explore.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at each of the steps; 1 grows chains.

    Raises:
        ValueError: If `width` is below 1 or does not fit before `end`.
    """

    def __init__(
        self, width: int = 2, end: int | None = None, eta: float = 0.7, branching: int = 1
    ) -> None:
        super().__init__(eta, branching)
        require_positive("width", width)
        if end is not None and end < width:
            raise ValueError(f"a window of width={width} does not fit before end={end}; raise end")
        self.width = width
        self.end = end

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark the window drawn for each prompt; see `StepSelector.mark`."""
        end = explores.shape[1] if self.end is None else self.end
        for row, key in enumerate(index.tolist()):
            start = int(noise.permutation("window", (key,), end - self.width + 1)[0])
            explores[row, start : start + self.width] = True

    def validate(self, num_steps: int) -> None:
        """Check that the window fits; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("width", self.width, num_steps)
        if self.end is not None:
            require_steps("end", self.end, num_steps)


class SlidingWindow(StepSelector):
    """Explores in a window that moves from noise to data as training goes on.

    MixGRPO (arXiv 2507.21802), with its settings for T = 25 as the defaults. Every position is a
    whole window: the last one is moved back to end at the last eligible step, and after it the
    window starts again at step 0.

    Args:
        width: Consecutive steps that explore.
        iterations_per_position: Training iterations before the window moves.
        stride: Steps by which it moves; 0 leaves it at the first steps.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        branching: Children of every tree node at each of the steps; 1 grows chains.

    Raises:
        ValueError: If `width` or `iterations_per_position` is below 1 or `stride` below 0.

    Examples:
        The last of six steps never explores, so the third window is moved back by one step, and
        the fourth starts again:

        >>> import torch
        >>> window = SlidingWindow(width=2, iterations_per_position=1, stride=2)
        >>> for iteration in range(4):
        ...     schedule = window(None, KeyedNoise(0, iteration), torch.tensor([0]), num_steps=6)
        ...     print(schedule.stochastic.int().tolist())
        [[1, 1, 0, 0, 0, 0]]
        [[0, 0, 1, 1, 0, 0]]
        [[0, 0, 0, 1, 1, 0]]
        [[1, 1, 0, 0, 0, 0]]
    """

    def __init__(
        self,
        width: int = 4,
        iterations_per_position: int = 25,
        stride: int = 1,
        eta: float = 0.7,
        branching: int = 1,
    ) -> None:
        super().__init__(eta, branching)
        require_positive("width", width)
        require_positive("iterations_per_position", iterations_per_position)
        if stride < 0:
            raise ValueError(f"stride={stride} must be at least 0 (0 leaves the window in place)")
        self.width = width
        self.iterations_per_position = iterations_per_position
        self.stride = stride

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark this iteration's window; see `StepSelector.mark`."""
        start = self.start(noise.iteration, explores.shape[1] + 1)
        explores[:, start : start + self.width] = True

    def start(self, iteration: int, num_steps: int) -> int:
        """The window's first step in a training iteration.

        Args:
            iteration: Training iteration from 0; negative (fixed noise) counts as 0.
            num_steps: T, the number of denoising steps.

        Returns:
            Step number from 0.
        """
        last_start = num_steps - 1 - self.width
        num_positions = 1 + math.ceil(last_start / self.stride) if self.stride else 1
        position = max(iteration, 0) // self.iterations_per_position % num_positions
        return min(position * self.stride, last_start)

    def validate(self, num_steps: int) -> None:
        """Check that the window fits; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("width", self.width, num_steps)
