"""Controls: what of a reading they keep, and what they take away."""

from __future__ import annotations

import pytest
import torch

from aegpo.allocation import MedianSplitAllocator
from aegpo.entropy.controls import (
    EntropyControl,
    InvertedEntropy,
    RandomEntropy,
    ShuffledEntropy,
    SwappedEntropy,
)
from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import EntropyPeaks
from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch

CURVE = torch.tensor(
    [[0.9, 0.7, 0.5, 0.3, 0.8], [0.1, 0.2, 0.3, 0.4, 0.6], [0.2, 0.5, 0.1, 0.3, 0.7]]
)
DELTA = torch.tensor([0.01, 0.04, 0.02])
READING = EntropyReading(CURVE, DELTA)
INDEX = torch.tensor([8, 3, 5])
BATCH = PromptBatch(["a", "b", "c"], INDEX, [{}] * 3)
NOISE = KeyedNoise(2)
ALL = [ShuffledEntropy, SwappedEntropy, InvertedEntropy, RandomEntropy]


def steps(reading: EntropyReading) -> list[list[int]]:
    plan = EntropyPeaks(top_k=2)(reading, NOISE, INDEX, 5)
    return [row.nonzero().flatten().tolist() for row in plan.stochastic]


def test_inverted_entropy_explores_at_the_valleys() -> None:
    control = InvertedEntropy()(READING, NOISE, BATCH)
    expected = torch.tensor([[0.3, 0.5, 0.7, 0.9], [0.4, 0.3, 0.2, 0.1], [0.4, 0.1, 0.5, 0.3]])
    torch.testing.assert_close(control.curve[:, :-1], expected)
    torch.testing.assert_close(control.delta, torch.tensor([0.04, 0.01, 0.03]))
    assert steps(READING) == [[0, 1], [2, 3], [1, 3]]
    assert steps(control) == [[2, 3], [0, 1], [0, 2]]


def test_swapped_entropy_is_that_of_the_next_prompt() -> None:
    control = SwappedEntropy()(READING, NOISE, BATCH)
    assert torch.equal(control.curve[:, :-1], CURVE[[1, 2, 0], :-1])
    assert torch.equal(control.delta, DELTA[[1, 2, 0]])


def test_shuffled_entropy_keeps_the_values_and_loses_the_order() -> None:
    curves, deltas = [], []
    for iteration in range(40):
        control = ShuffledEntropy()(READING, NOISE.at(iteration), BATCH)
        assert torch.equal(control.curve[:, :-1].sort(1).values, CURVE[:, :-1].sort(1).values)
        assert torch.equal(control.delta.sort().values, DELTA.sort().values)
        curves.append(control.curve[:, 0])
        deltas.append(control.delta[0])
    # Every step comes first in its turn, for each prompt by itself.
    for prompt, column in enumerate(torch.stack(curves).T):
        assert set(column.tolist()) == set(CURVE[prompt, :-1].tolist())
    assert set(torch.stack(deltas).tolist()) == set(DELTA.tolist())


def test_random_entropy_is_new_at_every_iteration_and_the_prompts_own() -> None:
    control = RandomEntropy()
    first = control(READING, NOISE.at(1), BATCH)
    assert not torch.equal(first.curve, control(READING, NOISE.at(2), BATCH).curve)
    other = control(EntropyReading(CURVE + 1, DELTA + 1), NOISE.at(1), BATCH)
    assert torch.equal(other.curve[:, :-1], first.curve[:, :-1])  # nothing of the reading is left
    alone = control(READING.select([1]), NOISE.at(1), BATCH.select([1]))
    assert torch.equal(alone.curve[0], first.curve[1])  # whichever rank or batch it is in


def test_random_allocation_spends_the_budget_on_every_prompt_in_turn() -> None:
    allocator, control = MedianSplitAllocator(8, 16), RandomEntropy("delta")
    batch = PromptBatch(["a"] * 8, torch.arange(8), [{}] * 8)
    reading = EntropyReading(torch.ones(8, 5), torch.arange(8.0))
    received = torch.stack(
        [allocator(control(reading, NOISE.at(step), batch), 8) for step in range(60)]
    )
    assert (received.sum(1) == 96).all() and set(received.unique().tolist()) == {8, 16}
    assert ((received.double().mean(0) - 12).abs() < 2).all()  # 4 standard errors of ±4


@pytest.mark.parametrize("control", ALL)
def test_one_signal_may_stay_true(control: type[EntropyControl]) -> None:
    curve_only = control("curve")(READING, NOISE, BATCH)
    assert torch.equal(curve_only.delta, DELTA)
    assert not torch.equal(curve_only.curve[:, :-1], CURVE[:, :-1])
    delta_only = control("delta")(READING, NOISE.at(3), BATCH)
    assert torch.equal(delta_only.curve, CURVE)
    assert not torch.equal(delta_only.delta, DELTA)
    # The last step never explores, and without ΔEntropy there is none to replace.
    both = control()(EntropyReading(CURVE), NOISE, BATCH)
    assert torch.equal(both.curve[:, -1], CURVE[:, -1]) and both.delta is None


def test_refuses_an_unknown_signal() -> None:
    with pytest.raises(ValueError, match="signals='curves' is unknown"):
        ShuffledEntropy("curves")
