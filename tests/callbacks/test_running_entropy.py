"""The running mean of the curves: its weights, what it steadies, and a resumed run."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import EntropyPeaks
from aegpo.noise import KeyedNoise
from callbacks.cost_logger import CostLogger
from callbacks.entropy_probe import EntropyProbe
from callbacks.running_entropy import RunningEntropy

INDEX = torch.arange(3)


def curves(iterations: int, seed: int = 0) -> Tensor:
    """Three prompts and six steps in each iteration; step 3 above step 0, less than the noise."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor([0.60, 0.50, 0.50, 0.61, 0.50, 0.90])
    return level + 0.02 * torch.randn(iterations, 3, 6, generator=generator)


def published(running: RunningEntropy, readings: Tensor) -> list[EntropyReading]:
    """What the selector finds in each iteration."""
    found = []
    for curve in readings:
        module = SimpleNamespace(entropy=EntropyReading(curve, torch.tensor([0.1, 0.3, 0.2])))
        running.on_train_batch_start(None, module, None, 0)  # type: ignore[arg-type]
        found.append(module.entropy)
    return found


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_every_prompt_gets_the_weighted_mean_of_the_batches_so_far(decay: float) -> None:
    readings = curves(5)
    found = published(RunningEntropy(decay), readings)
    means = readings.double().mean(1).numpy()
    for now, reading in enumerate(found):
        weights = decay ** np.arange(now, -1, -1)
        expected = np.average(means[: now + 1], axis=0, weights=weights)
        for row in reading.curve:
            np.testing.assert_allclose(row.numpy(), expected, rtol=1e-6)
        assert reading.delta.tolist() == pytest.approx([0.1, 0.3, 0.2])


def chosen(reading: EntropyReading, **settings: Any) -> list[list[int]]:
    plan = EntropyPeaks(top_k=1, **settings)(reading, KeyedNoise(0), INDEX, 6)
    return [row.nonzero().flatten().tolist() for row in plan.stochastic]


def test_steps_stay_where_a_single_batch_would_move_them() -> None:
    readings = curves(60)
    running = published(RunningEntropy(1.0), readings)
    alone = [chosen(EntropyReading(curve), scope="batch")[0] for curve in readings]
    late = [chosen(reading)[0] for reading in running[30:]]
    assert [0] in alone and [3] in alone
    assert late == [[3]] * 30
    # With a threshold as well: above it are the two high steps, for all prompts alike.
    assert chosen(running[-1], threshold=0.5) == [[0, 3]] * 3


def test_a_resumed_mean_goes_on_bit_for_bit() -> None:
    readings = curves(6)
    whole = published(RunningEntropy(0.8), readings)
    first, second = RunningEntropy(0.8), RunningEntropy(0.8)
    published(first, readings[:4])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for one, other in zip(published(second, readings[4:]), whole[4:], strict=True):
        assert torch.equal(one.curve, other.curve)


def test_before_the_first_reading_nothing_is_published() -> None:
    running, module = RunningEntropy(), SimpleNamespace(entropy=None)
    running.on_train_batch_start(None, module, None, 0)  # type: ignore[arg-type]
    assert module.entropy is None and running.state_dict()["weight"] == 0.0


def test_it_stands_after_the_probe() -> None:
    running: Any = RunningEntropy()
    trainer: Any = SimpleNamespace(callbacks=[CostLogger(), running, EntropyProbe()])
    with pytest.raises(ValueError, match=r"RunningEntropy replaces .* only \['CostLogger'\]"):
        running.setup(trainer, None, "fit")
    trainer.callbacks = [EntropyProbe(), running]
    running.setup(trainer, None, "fit")


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_refuses_a_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay={decay} must lie in"):
        RunningEntropy(decay)
