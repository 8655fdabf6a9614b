"""The optimizer of the bundled trainings with its schedule: a linear rise, then half a cosine."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from transformers import get_cosine_schedule_with_warmup


def cosine_decay(
    optimizer: Optimizer, warmup_steps: int, run_steps: int, decay_steps: int | None = None
) -> dict[str, Any]:
    """What `configure_optimizers` returns for `transformers.get_cosine_schedule_with_warmup`.

    Args:
        optimizer: Its groups keep their own peak learning rates.
        warmup_steps: Optimizer steps of the linear rise from 0.
        run_steps: Optimizer steps of the whole run.
        decay_steps: Optimizer steps after which the learning rate is 0; None for `run_steps`.

    Returns:
        The optimizer and its schedule, to be stepped once for every optimizer step.

    Raises:
        ValueError: If the rise is negative or not shorter than the decay, or the run is longer.
    """
    decay_steps = decay_steps or run_steps
    if not 0 <= warmup_steps < decay_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 and below the {decay_steps} steps to "
            "learning rate 0; lower warmup_steps or raise max_steps"
        )
    if decay_steps < run_steps:
        raise ValueError(
            f"decay_steps={decay_steps} is below the run's {run_steps} steps, and the learning "
            "rate would rise again after it; raise decay_steps or lower max_steps"
        )
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, decay_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
