"""How transitions are weighted: by hand, by published numbers, and by gradients."""

from __future__ import annotations

import pytest
import torch
from gaussian_cases import gaussian_case, terms_of

from aegpo.objectives import EqualWeight, RatioNorm, SensitivityWeight, StdWeight
from aegpo.objectives.transition_weights import TransitionTerms


def test_equal() -> None:
    terms = terms_of(gaussian_case(0.01))
    log_ratio, weight = EqualWeight()(terms)
    assert torch.equal(log_ratio, terms.log_ratio)
    assert weight.tolist() == [1.0] * 6


def test_std_has_tempflows_numbers() -> None:
    # METHOD's figures for Flow-SDE 0.7 on SD3's 10 steps, without the last.
    std = [0.7, 0.74296, 0.53615, 0.4459, 0.39179, 0.3528, 0.31907, 0.28201, 0.22536]
    terms = TransitionTerms(
        log_ratio=torch.zeros(9),
        drift=torch.zeros(9),
        std=torch.tensor(std),
        dt=torch.ones(9),
        mean_std=torch.tensor(std).mean(),
        sensitivity=torch.ones(9),
        mean_std_per_sensitivity=torch.tensor(1.0),
    )
    log_ratio, weight = StdWeight()(terms)
    expected = [1.58, 1.67, 1.21, 1.01, 0.88, 0.80, 0.72, 0.64, 0.51]
    torch.testing.assert_close(weight, torch.tensor(expected), atol=0.006, rtol=0)
    assert weight.mean().item() == pytest.approx(1.0)
    assert torch.equal(log_ratio, terms.log_ratio)


def test_sensitivity_has_flow_sdes_numbers() -> None:
    # Deviation and factor of the velocity for Flow-SDE 0.7 on SD3's 10 steps, shift 3, to five
    # digits, without the last step.
    std = [0.7, 0.74296, 0.53615, 0.4459, 0.39179, 0.3528, 0.31907, 0.28201, 0.22536]
    factor = [0.03987, 0.05824, 0.06929, 0.08382, 0.10345, 0.13088, 0.17091, 0.2326, 0.33505]
    balance = torch.tensor(std) / torch.tensor(factor)
    terms = TransitionTerms(
        log_ratio=torch.linspace(-0.1, 0.1, 9),
        drift=torch.zeros(9),
        std=torch.tensor(std),
        dt=torch.ones(9),
        mean_std=torch.tensor(std).mean(),
        sensitivity=torch.tensor(factor),
        mean_std_per_sensitivity=balance.mean(),
    )
    log_ratio, weight = SensitivityWeight()(terms)
    # Ratios 17.557, 12.757, 7.738, 5.320, 3.787, 2.696, 1.867, 1.212 and 0.673, mean 5.956.
    expected = [2.948, 2.142, 1.299, 0.893, 0.636, 0.453, 0.313, 0.204, 0.113]
    torch.testing.assert_close(weight, torch.tensor(expected), atol=0.001, rtol=0)
    assert torch.equal(log_ratio, terms.log_ratio)


def test_ratio_norm_is_the_mean_of_noise_times_shift() -> None:
    case = gaussian_case(0.05)
    log_ratio, _ = RatioNorm()(terms_of(case))
    shift = case["mean"] - case["old_mean"]
    expected = (case["z"] * shift).mean(dim=1)
    torch.testing.assert_close(log_ratio, expected, atol=2e-7, rtol=1e-4)


def test_ratio_norm_by_hand() -> None:
    # One dimension, std 0.5, z = 2, shift 0.1: log ratio (z δ - δ²/2) with δ = 0.2 is 0.38,
    # drift 0.02; (0.38 + 0.02) · 0.5 = 0.2 = z · shift. Weight 1 / 0.25.
    terms = TransitionTerms(
        log_ratio=torch.tensor([0.38]),
        drift=torch.tensor([0.02]),
        std=torch.tensor([0.5]),
        dt=torch.tensor([0.25]),
        mean_std=torch.tensor(0.5),
        sensitivity=torch.tensor([0.3]),
        mean_std_per_sensitivity=torch.tensor(2.0),
    )
    log_ratio, weight = RatioNorm()(terms)
    assert log_ratio.item() == pytest.approx(0.2)
    assert weight.item() == pytest.approx(4.0)


def test_ratio_norm_takes_the_bias_away() -> None:
    case = gaussian_case(0.05, n=4, dim=200_000)
    terms = terms_of(case)
    log_ratio, _ = RatioNorm()(terms)
    bias = -terms.drift
    assert bool((terms.log_ratio < 0.5 * bias).all())  # plain: negative, about the bias
    assert bool((log_ratio.abs() < 0.05 * (bias * terms.std).abs().max()).all())


def test_ratio_norm_has_the_gradient_of_its_own_exponent() -> None:
    case = gaussian_case(0.05)
    case = {name: value.double() for name, value in case.items()}
    case["x"] = case["old_mean"] + case["std"][:, None] * case["z"]
    case["mean"].requires_grad_()
    log_ratio, _ = RatioNorm()(terms_of(case))
    (gradient,) = torch.autograd.grad(log_ratio.sum(), case["mean"])
    torch.testing.assert_close(gradient, case["z"] / case["z"].shape[1], atol=1e-12, rtol=0)
