"""The plan of a run: the numbers that `page` lays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegpo.evaluations import TRAINING
from aegpo.planning.counts import Range
from aegpo.planning.memory import MemoryEstimate
from aegpo.planning.policy_size import PolicySize
from lightning_modules.commands.plan.dry_run import PlannedIteration
from lightning_modules.commands.plan.measured_rate import MeasuredRate
from lightning_modules.commands.plan.run_length import RunLength
from lightning_modules.commands.plan.stretches import Stretch


@dataclass(frozen=True)
class RunPlan:
    """What a run will do and cost.

    Args:
        iteration: What an iteration does.
        length: How many there are.
        batch_size: Prompts of an iteration.
        num_steps: Denoising steps T.
        sampler: What takes those without noise, by name.
        updates: Optimizer steps of an iteration.
        processes: Ranks that share the prompts.
        evaluations: Model evaluations of the run by purpose, validation among them; None for a run
            without an end.
        validation: Model evaluations of one validation.
        size: The policy's networks, None if unknown.
        memory: The estimate for one rank, None if unknown.
        unknown: Why size and memory are unknown.
        rate: How fast it will be, None if unknown.
        spread: Whether FSDP2 spreads the denoiser over the ranks.
        warmup: The first iterations, where they draw otherwise; None if they do not.
    """

    iteration: PlannedIteration
    length: RunLength
    batch_size: int
    num_steps: int
    sampler: str
    updates: int
    processes: int
    evaluations: dict[str, Range] | None
    validation: int
    size: PolicySize | None
    memory: MemoryEstimate | None
    unknown: str
    rate: MeasuredRate | None
    spread: bool = False
    warmup: Stretch | None = None

    @property
    def total(self) -> Range | None:
        """Training evaluations of the run, as `cost/evaluations` counts them."""
        if self.evaluations is None:
            return None
        return sum_ranges(self.evaluations[purpose] for purpose in TRAINING)


def sum_ranges(ranges: Any) -> Range:
    """Add ranges up.

    Args:
        ranges: Any number of them.

    Returns:
        Their sum.
    """
    return sum(ranges, Range.exactly(0))
