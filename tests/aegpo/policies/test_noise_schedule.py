"""The noise schedule of a diffusion model, against the definitions computed here in float64."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from tiny_unet import BETAS

from aegpo.policies.noise_schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    ddim_scheduler,
    latent_scale,
)


def scheduler(**differences: object) -> DDIMScheduler:
    return DDIMScheduler(**{**BETAS, "set_alpha_to_one": False, **differences})


def kept_by_hand() -> list[float]:
    """Cumulative alphas of the scaled linear betas."""
    kept, product = [], 1.0
    for step in range(1000):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * step / 999
        product *= 1 - root**2
        kept.append(product)
    return kept


def level(kept: float) -> float:
    return math.sqrt(1 - kept) / (math.sqrt(kept) + math.sqrt(1 - kept))


@pytest.mark.parametrize(("num_steps", "first"), [(10, 901), (50, 981), (1, 1)])
def test_levels_are_those_of_the_timesteps(num_steps: int, first: int) -> None:
    kept = kept_by_hand()
    timesteps = [first - i * (1000 // num_steps) for i in range(num_steps)]
    expected = [level(kept[timestep]) for timestep in timesteps]
    schedule = NoiseSchedule(scheduler())
    sigmas = schedule.sigmas(num_steps)
    torch.testing.assert_close(sigmas, torch.tensor([*expected, level(kept[0])]), rtol=1e-4, atol=0)
    assert schedule.timesteps(sigmas[:-1]).tolist() == timesteps
    assert sigmas[-1] == torch.tensor(schedule.final) and 0.028 < schedule.final < 0.029
    to_zero = NoiseSchedule(scheduler(set_alpha_to_one=True)).sigmas(num_steps)
    assert torch.equal(to_zero[:-1], sigmas[:-1]) and to_zero[-1] == 0


def test_every_timestep_is_found_by_its_level_and_what_lies_near() -> None:
    schedule = NoiseSchedule(scheduler())
    levels = torch.tensor([level(kept) for kept in kept_by_hand()])
    assert schedule.timesteps(levels).tolist() == list(range(1000))
    third = levels[:-1] + (levels[1:] - levels[:-1]) / 3
    assert schedule.timesteps(third).tolist() == list(range(999))
    assert schedule.timesteps(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_true_prediction_is_the_true_velocity(prediction_type: str) -> None:
    schedule = NoiseSchedule(scheduler(prediction_type=prediction_type))
    data, noise = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    angle = torch.linspace(0.05, 1.5, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    a, s = angle.cos(), angle.sin()
    noisy = a * data + s * noise
    output = {"epsilon": noise, "v_prediction": a * noise - s * data, "sample": data}
    sigma = (s / (a + s)).flatten().float()
    got = schedule.velocity(output[prediction_type].float(), noisy.float(), sigma)
    torch.testing.assert_close(got.double(), noise - data, rtol=1e-4, atol=1e-4)
    share = sigma.double().view(-1, 1, 1, 1)
    flow = (1 - share) * data + share * noise
    torch.testing.assert_close(flow * latent_scale(share), noisy, rtol=1e-5, atol=1e-5)


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    settings = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    schedule = NoiseSchedule(scheduler(**settings, prediction_type="v_prediction"))
    sigmas = schedule.sigmas(20)
    assert sigmas[0] == 1 and schedule.timesteps(sigmas[:2]).tolist() == [999, 949]
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(schedule.velocity(-noise, noise, sigmas[:1]), -noise + noise)
    with pytest.raises(ValueError, match="needs prediction_type v_prediction or sample"):
        NoiseSchedule(scheduler(**settings))


def test_data_are_never_clipped_whatever_the_default() -> None:
    made = ddim_scheduler(EulerDiscreteScheduler(**BETAS))  # which says nothing on clipping
    assert not made.config.clip_sample and made.config.beta_end == 0.012
    made.set_timesteps(10)
    latents = torch.full((1, 1, 1, 1), 8.0)
    kept = kept_by_hand()
    stepped = made.step(torch.zeros_like(latents), 901, latents).prev_sample
    assert float(stepped) == pytest.approx(8 * math.sqrt(kept[801] / kept[901]), rel=1e-3)


@pytest.mark.parametrize("num_steps", [0, 1000, 1001])
def test_steps_that_do_not_fit(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"{num_steps} denoising steps do not fit the 1000"):
        NoiseSchedule(scheduler()).sigmas(num_steps)  # leading, offset 1: 1000 would need t = 1000


def test_schedulers_that_ddim_cannot_stand_in_for() -> None:
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler, whose noise levels"):
        NoiseSchedule(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="prediction_type is 'flow'"):
        NoiseSchedule(scheduler(prediction_type="flow"))
