"""CPS against METHOD's formula; DDIM in the flow's noise levels against diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from sde_steps import assert_every_step_is, linear_sigmas, shifted_sigmas
from torch import Tensor

from aegpo.sde import CPS, DDIM

SD14 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def cps_reference(x: Tensor, v: Tensor, s: float, s_next: float, a: float) -> tuple[Tensor, float]:
    std = s_next * math.sin(a * math.pi / 2)
    data, noise = x - s * v, x + (1 - s) * v
    return (1 - s_next) * data + math.sqrt(max(s_next**2 - std**2, 0)) * noise, std


@pytest.mark.parametrize("schedule", [shifted_sigmas, linear_sigmas])
@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_every_step_of_cps_equals_the_float64_reference(eta, num_steps, schedule):
    assert_every_step_is(cps_reference, CPS(), schedule, num_steps, eta)


def test_cps_golden_deviations():
    sigmas = shifted_sigmas(10).float()
    got = CPS().coefficients(sigmas[:-1], sigmas[1:], torch.full((10,), 0.8))
    expected = [0.9131, 0.8687, 0.8157, 0.7517, 0.6727, 0.5727, 0.4421, 0.2644, 0.0085, 0]
    torch.testing.assert_close(got.std, torch.tensor(expected), rtol=0, atol=6e-5)


def test_cps_keeps_the_shares_of_data_and_noise():
    """Exact data x0 and noise: x' must be (1 - s') x0 + s' N(0, 1) for any eta."""
    for eta in (0.2, 0.8, 1.0):
        got = CPS().coefficients(torch.tensor([0.8]), torch.tensor([0.7]), torch.tensor([eta]))
        # x = 0.2 x0 + 0.8 e, v = e - x0
        of_data = 0.2 * got.latents - got.prediction
        of_noise = 0.8 * got.latents + got.prediction
        assert of_data.item() == pytest.approx(0.3, abs=1e-6)
        assert math.hypot(of_noise.item(), got.std.item()) == pytest.approx(0.7, abs=1e-6)


def scheduler(num_steps: int) -> DDIMScheduler:
    made = DDIMScheduler(**SD14)
    made.set_timesteps(num_steps)
    return made


def to_flow(abar: float) -> tuple[float, float]:
    """The flow's sigma, and the factor by which a diffusion model's latents are divided."""
    data, noise = math.sqrt(abar), math.sqrt(1 - abar)
    return noise / (data + noise), data + noise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [10, 50])
def test_a_step_is_the_schedulers(eta: float, num_steps: int) -> None:
    reference = scheduler(num_steps)
    generator = torch.Generator().manual_seed(0)
    latents, epsilon, noise = torch.randn(3, 1, 4, 2, 2, generator=generator)
    for timestep in reference.timesteps.tolist():
        before = reference.alphas_cumprod[timestep]
        previous = timestep - 1000 // num_steps
        after = (
            reference.alphas_cumprod[previous] if previous >= 0 else reference.final_alpha_cumprod
        )
        expected = reference.step(epsilon, timestep, latents, eta=eta, variance_noise=noise)
        sigma, scale = to_flow(float(before))
        sigma_next, scale_next = to_flow(float(after))
        data = (latents - (1 - before).sqrt() * epsilon) / before.sqrt()
        step = DDIM().step(
            epsilon - data,
            latents / scale,
            torch.tensor([sigma]),
            torch.tensor([sigma_next]),
            torch.tensor([eta]),
        )
        got = step.sample(noise) * scale_next
        torch.testing.assert_close(got, expected.prev_sample, rtol=1e-4, atol=1e-5)


def test_published_deviations() -> None:
    """Those of DDPO's step on the schedule of SD 1.4, T = 50."""
    reference = scheduler(50)
    for timestep, deviation in ((981, 0.454463), (501, 0.294785), (21, 0.03948), (1, 0.020648)):
        before, after = (reference.alphas_cumprod[max(t, 0)] for t in (timestep, timestep - 20))
        sigma, _ = to_flow(float(before))
        sigma_next, scale_next = to_flow(float(after))
        got = DDIM().coefficients(
            torch.tensor([sigma]), torch.tensor([sigma_next]), torch.tensor([1.0])
        )
        assert float(got.std) * scale_next == pytest.approx(deviation, rel=1e-3)


def test_eta_one_from_pure_noise_draws_all_noise_anew() -> None:
    got = DDIM().coefficients(torch.tensor([1.0]), torch.tensor([0.7]), torch.tensor([1.0]))
    assert got.std.item() == pytest.approx(0.7)
    assert got.latents.item() == pytest.approx(0.3), "what is left is the data's share"
