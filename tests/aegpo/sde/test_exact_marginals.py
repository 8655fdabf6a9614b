"""DDIM in the flow's noise levels, against diffusers' scheduler and the published numbers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from aegpo.sde import DDIM

SD14 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


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
