"""The running mean of the curves: its weights, what it steadies, and a resumed run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from probe_by_hand import TRAINER, probe
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import EntropyPeaks
from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch
from callbacks.cost_logger import CostLogger
from callbacks.entropy_probe import EntropyProbe
from callbacks.running_entropy import RunningEntropy

INDEX = torch.arange(3)
BATCH = PromptBatch(["a", "b", "c"], INDEX, [{}] * 3)


def curves(iterations: int, seed: int = 0) -> Tensor:
    """Three prompts and six steps in each iteration; step 3 above step 0, less than the noise."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor([0.60, 0.50, 0.50, 0.61, 0.50, 0.90])
    return level + 0.02 * torch.randn(iterations, 3, 6, generator=generator)


def published(running: RunningEntropy, readings: Tensor) -> list[EntropyReading]:
    """What the selector finds in each iteration; curves by hand are as fast as many are needed."""
    found = []
    module = tiny_module(Path("never built"))
    for curve in readings:
        module.entropy = EntropyReading(curve, torch.tensor([0.1, 0.3, 0.2]))
        running.on_train_batch_start(TRAINER, module, BATCH, 0)
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
    running, module = RunningEntropy(), tiny_module(Path("never built"))
    running.on_train_batch_start(TRAINER, module, BATCH, 0)
    assert module.entropy is None and running.state_dict()["weight"] == 0.0


def test_it_stands_after_the_probe(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    trainer = tiny_trainer(tmp_path, [CostLogger(), RunningEntropy(), EntropyProbe()])
    with pytest.raises(ValueError, match=r"RunningEntropy replaces .* only \['CostLogger'\]"):
        trainer.fit(tiny_module(tiny_sd3_folder), tiny_data(tmp_path))


class Curves(L.Callback):
    """Notes the curves that are published when its turn comes."""

    def __init__(self) -> None:
        self.curves: list[Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        self.curves.append(pl_module.entropy.curve)


def test_a_training_explores_by_the_mean_of_what_the_probe_reads(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    module, before, after = tiny_module(tiny_sd3_folder), Curves(), Curves()
    callbacks = [probe(), before, RunningEntropy(0.5), after]
    tiny_trainer(tmp_path, callbacks, max_epochs=1, limit_val_batches=0).fit(
        module, tiny_data(tmp_path)
    )
    first, second = (curve.mean(0) for curve in before.curves)
    assert float((first - second).abs().max()) > 1e-4
    expected = (0.5 * first + second) / 1.5
    torch.testing.assert_close(after.curves[1], expected.expand(4, -1), rtol=0, atol=1e-6)
    assert torch.equal(module.entropy.curve, after.curves[1])
    assert len({tuple(row.tolist()) for row in module.last.schedule.stochastic}) == 1


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_refuses_a_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay={decay} must lie in"):
        RunningEntropy(decay)
