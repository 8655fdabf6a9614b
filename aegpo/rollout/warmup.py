"""The first iterations of a run, whose images may be cheaper than those that follow."""

from __future__ import annotations

from aegpo.samplers import Sampler
from aegpo.selection import Selection
from aegpo.utilities.checks import require_positive


class RolloutWarmup:
    """Draws the images of a run's first iterations in fewer steps, or chooses among them otherwise.

    A few steps of a method of higher order rank the images of the base model's neighbors as many
    steps of Euler's do, at half their cost. A policy that has learned from them for longer has
    velocities that they no longer follow, and learns from images that nobody else will see
    (docs/samplers.md): then the run's own steps take over. It depends on the iteration alone, so
    that a resumed run has it where the whole one had.

    Args:
        iterations: How many iterations it lasts, from the run's first.
        num_steps: Denoising steps T of their rollouts.
        sampler: What takes these steps; None for the Euler step.
        selection: Which of their images are trained on; None for the run's own choice.

    Raises:
        ValueError: If `iterations` is below one, or `num_steps` below two.
    """

    def __init__(
        self,
        iterations: int,
        num_steps: int,
        sampler: Sampler | None = None,
        selection: Selection | None = None,
    ) -> None:
        require_positive("iterations", iterations)
        if num_steps < 2:
            raise ValueError(f"RolloutWarmup: num_steps={num_steps} must be at least 2")
        self.iterations, self.num_steps = iterations, num_steps
        self.sampler, self.selection = sampler, selection

    def lasts(self, iteration: int) -> bool:
        """Whether an iteration, counted from 0, is one of the first."""
        return iteration < self.iterations
