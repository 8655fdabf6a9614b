"""What the probe publishes: of which policy, from which noise, how often, at what cost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_by_hand import probe, read, shake
from tiny_training import tiny_module
from torch import Tensor

from aegpo.noise import KeyedNoise


@pytest.fixture
def module(tiny_sd3_folder: Path) -> Any:
    module = tiny_module(tiny_sd3_folder)
    module.configure_model()
    return module


def test_the_reference_is_read_once_and_delta_is_the_mean_distance_to_it(module: Any) -> None:
    own = probe()
    before = read(own, module, (0, 4))
    assert before.curve.shape == (2, 5) and 0 < float(before.curve.min()) < 1
    assert before.delta.tolist() == [0.0, 0.0]
    counts = module.policy.evaluations.counts
    assert (counts["probe"], counts["reference"]) == (2 * 5, 2 * 5)
    shake(module)
    after = read(own, module, (0, 4), iteration=1)
    assert (counts["probe"], counts["reference"]) == (4 * 5, 2 * 5)
    expected = (after.curve - before.curve).abs().mean(1)
    assert float(expected.min()) > 1e-4
    torch.testing.assert_close(after.delta, expected)
    torch.testing.assert_close(own.first_curve, before.curve.mean(0))
    torch.testing.assert_close(own.reference_curve, before.curve.mean(0))
    assert own.per_layer.shape == (len(own.layer_names), 5)
    torch.testing.assert_close(own.per_layer.mean(0), after.curve.mean(0))
    # A prompt met after training began is compared with the reference too, not with itself.
    late = read(own, module, (7,), iteration=2)
    assert counts["reference"] == 3 * 5
    assert float(late.delta) > 1e-4


def test_a_prompt_s_reading_depends_on_no_other_prompt_and_no_iteration(module: Any) -> None:
    alone = read(probe(), module, (4,), iteration=0).curve[0]
    beside = read(probe(), module, (0, 4, 9), iteration=17).curve[1]
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-6)
    assert not torch.allclose(alone, read(probe(), module, (9,)).curve[0], atol=1e-4)


class Shifted(KeyedNoise):
    """The noise in which every prompt's first trajectory is its k-th one."""

    def __init__(self, noise: KeyedNoise, number: int) -> None:
        super().__init__(noise.seed)
        self.iteration, self.number = noise.iteration, number

    def fixed(self) -> KeyedNoise:
        return self

    def normal(self, purpose: str, keys: Tensor, shape: Any) -> Tensor:
        keys = keys.clone()
        keys[:, 1] += self.number
        return super().normal(purpose, keys, shape)


def test_trajectories_are_averaged(module: Any) -> None:
    together = read(probe(trajectories=3), module, (2, 5)).curve
    assert module.policy.evaluations.counts["probe"] == 3 * 2 * 5
    noise = module.noise
    single = []
    for number in range(3):
        module.noise = Shifted(noise.fixed(), number)
        single.append(read(probe(), module, (2, 5)).curve)
    assert float((single[0] - single[1]).abs().max()) > 1e-4
    torch.testing.assert_close(together, torch.stack(single).mean(0), rtol=0, atol=1e-6)


def test_between_two_readings_the_last_one_stands_in(module: Any) -> None:
    own = probe(every_n_iterations=2)
    first = read(own, module, (0, 4), iteration=0)
    shake(module)
    between = read(own, module, (4, 7), iteration=1)
    assert module.policy.evaluations.counts["probe"] == 2 * 5
    assert torch.equal(between.curve[0], first.curve[1])  # the last visit
    torch.testing.assert_close(between.curve[1], first.curve.mean(0))  # never read: the mean
    again = read(own, module, (4, 7), iteration=2)
    assert module.policy.evaluations.counts["probe"] == 4 * 5
    assert not torch.equal(again.curve[0], first.curve[1])


def test_before_any_reading_there_is_none(module: Any) -> None:
    assert read(probe(every_n_iterations=2), module, (0, 1), iteration=1) is None


def test_a_resumed_probe_reads_nothing_twice(module: Any) -> None:
    own = probe(every_n_iterations=2)
    read(own, module, (0, 4))
    shake(module)
    read(own, module, (4, 7), iteration=2)
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    resumed = probe(every_n_iterations=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    rows = (7, 4, 0, 11)
    expected = read(own, module, rows, iteration=3)
    reading = read(resumed, module, rows, iteration=3)
    assert torch.equal(reading.curve, expected.curve)
    assert torch.equal(reading.delta, expected.delta)
    assert torch.equal(resumed.first_curve, own.first_curve)
    assert torch.equal(resumed.reference_curve, own.reference_curve)
    counts = module.policy.evaluations.counts
    before = counts["reference"]
    read(resumed, module, rows, iteration=4)
    assert counts["reference"] == before + 5  # prompt 11 only


def test_the_state_of_a_probe_that_has_read_nothing() -> None:
    resumed = probe()
    resumed.load_state_dict(probe().state_dict())
    assert resumed.reference == {} and resumed.first_curve is None


@pytest.mark.parametrize("settings", [{"trajectories": 0}, {"every_n_iterations": 0}])
def test_counts_below_one_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must both be at least 1"):
        probe(**settings)
