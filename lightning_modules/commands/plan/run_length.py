"""How many iterations and validations a trainer will run, from its limits and its callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from aegpo.planning.counts import PlansEvaluations, Range, limited_batches


@dataclass(frozen=True)
class RunLength:
    """The length of a run.

    Args:
        iterations: Training iterations; None where nothing limits them.
        per_epoch: Iterations of an epoch.
        validations: Held-out evaluations during training; None as above.
        val_images: Images of one of them.
        sanity_images: Images drawn before training.
    """

    iterations: Range | None
    per_epoch: int
    validations: Range | None
    val_images: int
    sanity_images: int


def run_length(
    trainer: Trainer,
    data: Any,
    callbacks: Sequence[PlansEvaluations],
    steps_per_iteration: int,
    spent: Callable[[int], Range],
) -> RunLength:
    """Find where a run ends.

    Args:
        trainer: The trainer; what ends a run by time or by a score is unknown before.
        data: A data module with `batches_per_epoch`, `val_images` and `val_batch_size`.
        callbacks: The callbacks that end runs or set the rhythm of validation.
        steps_per_iteration: Optimizer steps, which the trainer's `max_steps` counts.
        spent: Training evaluations after a number of iterations.

    Returns:
        The length.
    """
    per_epoch = limited_batches(data.batches_per_epoch, trainer.limit_train_batches)
    limits: list[int] = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * per_epoch)
    if trainer.max_steps >= 0:
        limits.append(math.ceil(trainer.max_steps / steps_per_iteration))
    iterations = Range.exactly(min(limits)) if limits else None
    budgets = [c.evaluation_budget for c in callbacks if c.evaluation_budget is not None]
    for budget in budgets:
        soonest = _first(lambda n: spent(n).high, budget)
        latest = _first(lambda n: spent(n).low, budget)
        most = iterations or Range(math.inf, math.inf)
        iterations = Range(min(soonest, most.low), min(latest, most.high))
    batches = 0
    if getattr(data, "val_prompts", None):
        number = math.ceil(data.val_images / data.val_batch_size)
        batches = limited_batches(number, trainer.limit_val_batches)
    sanity = min(batches, trainer.num_sanity_val_steps)
    validations = None
    if iterations is not None:
        marks = [c.evaluations_per_validation for c in callbacks if c.evaluations_per_validation]
        validations = _validations(trainer, iterations, per_epoch, marks, spent)
        if budgets or marks:  # one more may follow the last iteration
            validations = Range(validations.low, validations.high + 1)
    return RunLength(
        iterations=iterations,
        per_epoch=per_epoch,
        validations=validations if batches else Range.exactly(0),
        val_images=min(batches * data.val_batch_size, data.val_images),
        sanity_images=int(min(sanity * data.val_batch_size, data.val_images)),
    )


def _first(growing: Callable[[int], float], goal: float) -> int:
    """The first number from 1 for which something that never falls has come to a goal."""

    def reached(number: int) -> bool:
        return growing(number) >= goal

    high = 1
    while not reached(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _validations(
    trainer: Trainer,
    iterations: Range,
    per_epoch: int,
    marks: Sequence[int],
    spent: Callable[[int], Range],
) -> Range:
    """Validations of a run by Lightning's rhythm, or by marks of cost, and after the last one."""
    bounds = (int(iterations.low), int(iterations.high))
    if marks:
        # No budget can be passed twice by one iteration.
        low = min(int(spent(bounds[0]).low // marks[0]), bounds[0])
        return Range(low, min(int(spent(bounds[1]).high // marks[0]), bounds[1]))
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if epochs is None:
        return Range.over(math.ceil(count / int(interval or 1)) for count in bounds)
    length = max(1, per_epoch)
    if isinstance(interval, int):
        every = interval
    else:
        every = max(1, int(length * (1 if interval is None else interval)))
    return Range.over(_in_epochs(count, length, epochs, every) for count in bounds)


def _in_epochs(iterations: int, length: int, epochs: int, every: int) -> int:
    """Validations after every so many iterations of every so many epochs, and after the last."""
    whole, rest = divmod(iterations, length)
    number = whole // epochs * (length // every)
    scored = whole % epochs == 0 and length % every == 0
    if rest:
        due = (whole + 1) % epochs == 0
        number += rest // every if due else 0
        scored = due and rest % every == 0
    return number if scored or iterations == 0 else number + 1


def count_processes(accelerator: Any, devices: Any, num_nodes: int) -> int:
    """Processes that a trainer would start; where it would look, the GPUs of this machine.

    Args:
        accelerator: The trainer's argument.
        devices: The trainer's argument: a number, a list of devices, "auto" or -1.
        num_nodes: Machines.

    Returns:
        Their number, at least 1.
    """
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, str) and "," in devices:
        devices = [device for device in devices.split(",") if device.strip()]
    if isinstance(devices, list | tuple):
        return len(devices) * num_nodes
    if isinstance(devices, int) and devices > 0:
        return devices * num_nodes
    gpus = torch.cuda.device_count() if accelerator != "cpu" else 1
    return max(1, gpus) * num_nodes
