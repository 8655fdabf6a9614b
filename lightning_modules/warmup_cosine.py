"""The learning-rate schedule of the bundled trainings: a linear rise, then half a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, num_steps: int) -> LambdaLR:
    """Schedules ``optimizer`` from 0 up to its learning rate and down to 0 again.

    Args:
        optimizer: Its groups keep their own peak learning rates.
        warmup_steps: Optimizer steps of the linear rise.
        num_steps: Optimizer steps of the whole run; later steps stay at 0.

    Returns:
        A scheduler to be stepped once for every optimizer step.

    Raises:
        ValueError: If the rise is negative or not shorter than the run.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 and below the run's {num_steps} "
            "steps; lower warmup_steps or raise max_steps"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (num_steps - warmup_steps))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
