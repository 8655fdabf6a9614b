"""What a step selector chose, and what it has to refuse."""

from __future__ import annotations

import pytest
import torch

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import ExplorationSchedule, StepSelector
from aegpo.noise import KeyedNoise

NOISE = KeyedNoise(7)


def chosen(
    selector: StepSelector,
    num_steps: int,
    curve: list[list[float]] | None = None,
    noise: KeyedNoise = NOISE,
    num_prompts: int = 2,
) -> list[list[int]]:
    """Step numbers that explore, one list per prompt."""
    entropy = None if curve is None else EntropyReading(torch.tensor(curve))
    index = torch.arange(num_prompts if curve is None else len(curve)) * 10
    schedule = selector(entropy, noise, index, num_steps)
    assert schedule.num_steps == num_steps and schedule.num_prompts == len(index)
    return [row.nonzero().flatten().tolist() for row in schedule.stochastic]


def splits(schedule: ExplorationSchedule) -> list[list[int]]:
    """Step numbers that split, one list per prompt."""
    return [row.gt(1).nonzero().flatten().tolist() for row in schedule.branching]


def sizes(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def assert_too_few_steps(selector: StepSelector, num_steps: int, message: str) -> None:
    """So many steps are refused before the run and in it; thirty would do."""
    with pytest.raises(ValueError, match=message):
        selector.validate(num_steps)
    with pytest.raises(ValueError, match=message):  # nor is it done quietly later
        selector(None, NOISE, torch.arange(2), num_steps)
    selector.validate(30)
