"""Schedules against the figures of METHOD 0.1 and against the pipelines' own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from aegpo.policies.sigmas import resolution_mu, scheduler_sigmas


def test_sd3_schedule_of_ten_steps():
    expected = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893]
    sigmas = scheduler_sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), 10)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, torch.tensor([*expected, 0.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 1.3, 3.0, 7.7])
def test_uniform_spacing_is_shifted_once(shift):
    sigmas = scheduler_sigmas(FlowMatchEulerDiscreteScheduler(shift=shift), 10, "uniform")
    u = torch.linspace(1, 0, 11, dtype=torch.float64)
    expected = shift * u / (1 + (shift - 1) * u)
    torch.testing.assert_close(sigmas.double(), expected, rtol=0, atol=1e-6)
    assert sigmas[0] == 1 and sigmas[-1] == 0


def test_uniform_with_shift_three_is_the_dance_schedule():
    sigmas = scheduler_sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), 16, "uniform")
    assert sigmas[[1, 8, 15]].tolist() == pytest.approx([0.97826, 0.75, 0.16667], abs=1e-5)


def test_dynamic_shifting():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = resolution_mu(scheduler, 1024)
    assert mu == pytest.approx(0.63)
    sigmas = scheduler_sigmas(scheduler, 4, "uniform", mu=mu)
    expected = [1] + [math.exp(mu) / (math.exp(mu) + 1 / u - 1) for u in (0.75, 0.5, 0.25)] + [0]
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="mu=resolution_mu"):
        scheduler_sigmas(scheduler, 4)


@pytest.mark.parametrize("spacing", ["scheduler", "uniform"])
def test_the_scheduler_is_left_as_it_was(spacing):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    before = {name: repr(value) for name, value in vars(scheduler).items()}
    scheduler_sigmas(scheduler, 10, spacing)
    assert {name: repr(value) for name, value in vars(scheduler).items()} == before


@pytest.mark.parametrize("num_steps", [1, 2, 10, 50])
def test_every_length_falls_from_one_to_zero(num_steps):
    for spacing in ("scheduler", "uniform"):
        sigmas = scheduler_sigmas(FlowMatchEulerDiscreteScheduler(shift=3.0), num_steps, spacing)
        assert sigmas.shape == (num_steps + 1,)
        assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())


def test_default_is_what_the_pipeline_runs():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigmas = scheduler_sigmas(scheduler, 20)
    scheduler.set_timesteps(20)
    assert torch.equal(sigmas, scheduler.sigmas)


def test_what_cannot_be_a_schedule_is_refused():
    with pytest.raises(TypeError, match="DDIMScheduler"):
        scheduler_sigmas(DDIMScheduler(), 10)
    scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="num_steps"):
        scheduler_sigmas(scheduler, 0)
    with pytest.raises(ValueError, match="spacing"):
        scheduler_sigmas(scheduler, 10, "linear")
    with pytest.raises(ValueError, match="fall from 1 to 0"):
        scheduler_sigmas(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 10)
