"""What all SDEs promise: one Gaussian step, its density, and Euler's step where eta is 0."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from sde_steps import one_step

from aegpo.sde import CPS, DDIM, ODE, DanceSDE, FlowSDE, GaussianStep


@pytest.mark.parametrize(
    ("sde", "eta", "mean", "std"),
    [
        (FlowSDE(), 0.7, 0.81525, 0.442719),
        (DanceSDE(), 0.3, 0.9438125, 0.0948683),
        (CPS(), 0.8, 0.4179431, 0.6657396),
    ],
)
def test_golden_scalars(sde, eta, mean, std):
    """x = 1, v = 0.5, sigma 0.8 to 0.7."""
    step = one_step(sde, torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), 0.8, 0.7, eta)
    assert step.mean.item() == pytest.approx(mean, abs=2e-7)
    assert step.std.item() == pytest.approx(std, abs=1e-6)


def test_golden_log_prob():
    step = one_step(FlowSDE(), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), 0.8, 0.7, 0.7)
    drawn = step.sample(torch.full((1, 1, 1, 1), 0.5))
    assert step.log_prob(drawn).item() == pytest.approx(-0.229118, abs=2e-6)


@pytest.mark.parametrize(("sde", "eta"), [(FlowSDE(), 0.7), (DanceSDE(), 0.3), (CPS(), 0.8)])
def test_log_prob_and_kl_equal_torch_distributions(sde, eta):
    generator = torch.Generator().manual_seed(1)
    x, v, other_v, noise = torch.randn(4, 5, 4, 3, 2, generator=generator)
    step = one_step(sde, x, v, 0.6, 0.45, eta)
    other = one_step(sde, x, other_v, 0.6, 0.45, eta)
    drawn = step.sample(noise)
    torch.testing.assert_close(drawn, step.mean + step.std * noise)
    normal = torch.distributions.Normal(step.mean.double(), step.std.double())
    expected = normal.log_prob(drawn.double()).flatten(1).mean(1)
    torch.testing.assert_close(step.log_prob(drawn).double(), expected, rtol=1e-6, atol=1e-6)
    other_normal = torch.distributions.Normal(other.mean.double(), other.std.double())
    divergence = torch.distributions.kl_divergence(normal, other_normal).flatten(1).mean(1)
    torch.testing.assert_close(step.kl(other).double(), divergence, rtol=1e-5, atol=1e-6)
    assert step.kl(step).tolist() == [0.0] * 5


def test_kl_between_unequal_deviations():
    one = GaussianStep(torch.zeros(1, 2), torch.full((1, 1), 2.0))
    two = GaussianStep(torch.tensor([[1.0, 3.0]]), torch.full((1, 1), 4.0))
    # mean of ((1 + 9) / 2) / (2 * 16) + (4 / 16 - 1) / 2 + ln 2
    assert one.kl(two).item() == pytest.approx(5 / 32 - 0.375 + math.log(2), abs=1e-6)


def test_log_prob_gradient_reaches_the_prediction_and_not_the_sample():
    x, v = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, requires_grad=True)
    step = one_step(FlowSDE(), x, v, 0.8, 0.7, 0.7)
    drawn = step.sample(torch.ones_like(x))
    step.log_prob(drawn).sum().backward()
    # d logp / d v = (x' - mean) / std^2 * cv / 4 with z = 1 and cv = dt (1 + a^2 / 2)
    assert v.grad is not None
    expected = -0.1 * (1 + 0.7**2 / 2) / 0.442719 / 4
    torch.testing.assert_close(v.grad, torch.full_like(v, expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sde", [ODE(), FlowSDE(), DanceSDE(), CPS(), DDIM()])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_eta_zero_is_the_schedulers_euler_step_bit_for_bit(sde, shift):
    generator = torch.Generator().manual_seed(2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    for number, timestep in enumerate(scheduler.timesteps):
        v = torch.randn(x.shape, generator=generator)
        s, s_next = scheduler.sigmas[number : number + 2].tolist()
        step = one_step(sde, x, v, s, s_next, 0.0)
        x = scheduler.step(v, timestep, x).prev_sample
        assert torch.equal(step.mean, x)
        assert torch.equal(step.sample(torch.randn(x.shape, generator=generator)), x)
        assert step.std.tolist() == [[[[0.0]]]] * 2


@pytest.mark.parametrize("sde", [FlowSDE(), DanceSDE(), CPS(), DDIM()])
def test_rows_with_and_without_noise_share_a_batch(sde):
    generator = torch.Generator().manual_seed(3)
    x, v = torch.randn(2, 4, 4, 2, 2, generator=generator)
    v.requires_grad_(True)
    sigma, sigma_next = torch.tensor([1.0, 1.0, 0.4, 0.4]), torch.tensor([0.9, 0.9, 0.3, 0.3])
    eta = torch.tensor([0.5, 0.0, 0.5, 0.0])
    mixed = sde.step(v, x, sigma, sigma_next, eta)
    for row in range(4):
        alone = sde.step(*(value[row : row + 1] for value in (v, x, sigma, sigma_next, eta)))
        assert torch.equal(mixed.mean[row : row + 1], alone.mean)
        assert torch.equal(mixed.std[row : row + 1], alone.std)
    with pytest.raises(ValueError, match=r"rows \[1, 3\] of 4 are deterministic"):
        mixed.log_prob(x)
    with pytest.raises(ValueError, match="deterministic"):
        mixed.kl(mixed)
    noisy = mixed.select(eta > 0)
    assert noisy.log_prob(x[eta > 0]).shape == (2,)
    mixed.mean.sum().backward()
    assert v.grad is not None and bool(v.grad.isfinite().all())


def test_half_precision_inputs_are_computed_in_fp32():
    x, v = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 0.3).bfloat16()
    step = one_step(FlowSDE(), x.bfloat16(), v, 0.8, 0.7, 0.7)
    assert step.mean.dtype == torch.float32
    assert torch.equal(step.mean, one_step(FlowSDE(), x, v.float(), 0.8, 0.7, 0.7).mean)


@pytest.mark.parametrize(
    ("sde", "eta", "accepted"),
    [
        (CPS(), 1.2, "from 0 to 1"),
        (CPS(), -0.1, "from 0 to 1"),
        (FlowSDE(), -0.1, "0 or more"),
        (DanceSDE(), math.nan, "0 or more"),
        (FlowSDE(), math.inf, "0 or more"),
        (ODE(), 0.7, "0 only"),
    ],
)
def test_eta_out_of_range_says_what_is_accepted(sde, eta, accepted):
    x = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"{type(sde).__name__} accepts eta {accepted}"):
        one_step(sde, x, x, 0.8, 0.7, eta)
    with pytest.raises(ValueError, match=accepted):
        sde.check_eta(eta)


def test_bad_shapes_and_rising_sigma_are_refused():
    x, row = torch.ones(2, 1, 1, 1), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        FlowSDE().step(x, x, row[:1], row[:1], row[:1])
    with pytest.raises(ValueError, match="must decrease"):
        FlowSDE().step(x, x, row, row, row)
