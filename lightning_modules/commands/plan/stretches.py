"""The parts of a run whose iterations are alike: its warm-up, and all after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aegpo.evaluations import TRAINING
from aegpo.planning.counts import PlansEvaluations, Range, RunShape
from aegpo.samplers import sampler_name
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.commands.plan.dry_run import PlannedIteration

TRIED = 4
"""Iterations of a stretch that are tried, evenly from its first to its last."""


@dataclass(frozen=True)
class Stretch:
    """Iterations that draw alike.

    Args:
        first: The first of them, counted from 0.
        end: The first that is none of them any more; None for the run's last stretch.
        num_steps: Denoising steps T.
        sampler: What takes those without noise, by name.
        iteration: What one of them does.
    """

    first: int
    end: int | None
    num_steps: int
    sampler: str
    iteration: PlannedIteration

    def within(self, iterations: int) -> int:
        """How many of a run's iterations lie in it."""
        end = iterations if self.end is None else min(self.end, iterations)
        return max(0, end - self.first)


def stretches_of(
    model: AEGPOModule, bound: int, tried: Callable[[list[int]], PlannedIteration]
) -> list[Stretch]:
    """Try iterations of each part of a run.

    Args:
        model: The module, whose `iteration` is left as it was found.
        bound: Iterations among which those that are tried lie.
        tried: Makes a dry run of some iterations.

    Returns:
        One stretch, or two with a warm-up, the run's own settings last.
    """
    warm = 0 if model.warmup is None else model.warmup.iterations
    ends: list[tuple[int, int | None]] = [(0, warm)] if warm else []
    reached, stretches = model.iteration, []
    for first, end in [*ends, (warm, None)]:
        last = max(first, bound - 1 if end is None else end - 1)
        spread = {first + round(part * (last - first) / (TRIED - 1)) for part in range(TRIED)}
        model.iteration = first
        steps, sampler = model.num_steps, sampler_name(model.sampler)
        model.iteration = reached
        stretches.append(Stretch(first, end, steps, sampler, tried(sorted(spread))))
    return stretches


def spent_in(
    stretches: Sequence[Stretch],
    callbacks: Sequence[PlansEvaluations],
    run: RunShape,
    rows: int,
) -> dict[str, Range]:
    """Add up what iterations and callbacks spend.

    Args:
        stretches: The run's parts.
        callbacks: What spends evaluations of its own.
        run: The whole run; callbacks are asked about each part of it.
        rows: Evaluations that a sample of a callback's stands for, 2 where guidance doubles it.

    Returns:
        Training evaluations by purpose.
    """
    sums = dict.fromkeys(TRAINING, Range.exactly(0))
    for stretch in stretches:
        count = stretch.within(run.iterations)
        if count == 0:
            continue
        for purpose in TRAINING:
            sums[purpose] += stretch.iteration.evaluations[purpose] * count
        part = replace(run, iterations=count, num_steps=stretch.num_steps)
        for callback in callbacks:
            for purpose, samples in callback.planned_evaluations(part).items():
                sums[purpose] += samples * rows
    return sums
