"""The clipped surrogate, its ratio, and the loss that weights and sums them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gaussian_cases import gaussian_case, terms_of

from aegpo.objectives import EqualWeight, StdWeight
from aegpo.objectives.surrogate import (
    gaussian_log_ratio,
    masked_surrogate,
    policy_loss,
    surrogate,
)
from aegpo.objectives.transition_weights import TransitionTerms

EPS = 0.1


def log_density(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Mean over dimensions of the Gaussian log density, from torch.distributions, float64."""
    normal = torch.distributions.Normal(mean.double(), std.double()[:, None])
    return normal.log_prob(x.double()).mean(dim=1)


class TestSurrogate:
    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss", "clipped"),
        [
            (1.3, 2.0, -2.2, True),  # good and already likelier: held at 1.1
            (0.7, 2.0, -1.4, False),  # good but less likely: pulled back
            (1.3, -2.0, 2.6, False),  # bad and likelier: pushed down
            (0.7, -2.0, 1.8, True),  # bad and already less likely: held at 0.9
            (1.05, 2.0, -2.1, False),  # inside the range
            (0.95, -2.0, 1.9, False),
            (1.3, 0.0, 0.0, False),  # no advantage, nothing to hold
        ],
    )
    def test_by_hand(self, ratio: float, advantage: float, loss: float, clipped: bool) -> None:
        log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
        stats = surrogate(log_ratio, torch.tensor([advantage]), EPS)
        assert stats.loss.item() == pytest.approx(loss, abs=1e-6)
        assert stats.ratio.item() == pytest.approx(ratio, abs=1e-6)
        assert stats.clipped.item() is clipped
        (gradient,) = torch.autograd.grad(stats.loss.sum(), log_ratio)
        expected = 0.0 if clipped else -advantage * ratio
        assert gradient.item() == pytest.approx(expected, abs=1e-6)

    def test_gradient_at_ratio_one_is_that_of_the_log_prob(self) -> None:
        case = gaussian_case(shift=0.0)
        advantages = torch.tensor([1.5, -0.3, 0.0, 5.0, -5.0, 0.7])
        mean = case["old_mean"].clone().double().requires_grad_()
        std = case["std"].double()
        log_ratio = gaussian_log_ratio(mean, case["old_mean"].double(), case["x"].double(), std)
        loss = surrogate(log_ratio, advantages.double(), 1e-4).loss.sum()
        (gradient,) = torch.autograd.grad(loss, mean)
        objective = -(advantages.double() * log_density(case["x"], mean, std)).sum()
        (expected,) = torch.autograd.grad(objective, mean)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=0)

    def test_refuses_shapes_that_would_broadcast(self) -> None:
        with pytest.raises(ValueError, match=r"\(3, 1\)"):
            surrogate(torch.zeros(3), torch.zeros(3, 1), EPS)

    @pytest.mark.parametrize("clip_range", [0.0, -0.1, 1.1])
    def test_refuses_clip_range(self, clip_range: float) -> None:
        with pytest.raises(ValueError, match="clip_range"):
            surrogate(torch.zeros(2), torch.zeros(2), clip_range)


class TestMaskedSurrogate:
    @pytest.mark.parametrize(
        ("ratio", "divergence", "advantage", "dropped"),
        [
            (1.3, 0.02, 2.0, True),  # too far, and the gradient would lead further
            (0.7, 0.02, -2.0, True),
            (0.7, 0.02, 2.0, False),  # it leads back
            (1.3, 0.02, -2.0, False),
            (1.3, 0.009, 2.0, False),  # near, however much the ratio says
            (1.3, 0.01, 2.0, True),  # at the bound
            (1.0, 0.02, 2.0, False),  # the ratio has not moved
            (1.3, 0.02, 0.0, False),
        ],
    )
    def test_by_hand(
        self, ratio: float, divergence: float, advantage: float, dropped: bool
    ) -> None:
        log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
        far, advantages = torch.tensor([divergence]), torch.tensor([advantage])
        stats = masked_surrogate(log_ratio, far, advantages, bound=0.01)
        assert stats.loss.item() == pytest.approx(-advantage * ratio, abs=1e-6)
        assert stats.clipped.item() is dropped
        (gradient,) = torch.autograd.grad(stats.loss.sum(), log_ratio)
        expected = 0.0 if dropped else -advantage * ratio
        assert gradient.item() == pytest.approx(expected, abs=1e-6)

    def test_takes_the_place_of_the_clip(self) -> None:
        """By the exact KL of Gaussians, that of torch.distributions per dimension."""
        case = gaussian_case(0.1)
        normal, old = (
            torch.distributions.Normal(case[name].double(), case["std"].double()[:, None])
            for name in ("mean", "old_mean")
        )
        exact = torch.distributions.kl_divergence(normal, old).mean(1)
        terms, bound = terms_of(case), float(exact.median())
        advantages = torch.where(terms.log_ratio > 0, 1.0, -1.0)  # all have moved as asked
        found = policy_loss(
            terms, advantages, 1e-6, weight=EqualWeight(), divergence_bound=bound * (1 - 1e-6)
        )
        assert found.clipped is not None
        assert found.clipped.tolist() == (exact >= bound).tolist()
        assert 0 < int(found.clipped.sum()) < 6


class TestGaussianLogRatio:
    @pytest.mark.parametrize("shift", [1e-4, 1e-2, 0.3])
    def test_equals_the_difference_of_log_densities(self, shift: float) -> None:
        case = gaussian_case(shift)
        expected = log_density(case["x"], case["mean"], case["std"]) - log_density(
            case["x"], case["old_mean"], case["std"]
        )
        actual = gaussian_log_ratio(case["mean"], case["old_mean"], case["x"], case["std"])
        torch.testing.assert_close(actual.double(), expected, atol=1e-6 * shift / 0.05, rtol=1e-4)

    def test_is_exactly_zero_for_equal_means(self) -> None:
        case = gaussian_case(0.0)
        ratio = gaussian_log_ratio(case["mean"], case["old_mean"], case["x"], case["std"])
        assert ratio.tolist() == [0.0] * 6

    def test_keeps_image_shapes(self) -> None:
        shape = (2, 3, 4, 4)
        mean, old, x = torch.rand(shape), torch.rand(shape), torch.rand(shape)
        std = torch.tensor([0.5, 0.2])
        flat = gaussian_log_ratio(mean.flatten(1), old.flatten(1), x.flatten(1), std)
        torch.testing.assert_close(gaussian_log_ratio(mean, old, x, std), flat)


class TestPolicyLoss:
    def test_sums_weight_surrogate_and_kl(self) -> None:
        terms = TransitionTerms(
            log_ratio=torch.tensor([1.3, 0.7]).log(),
            drift=torch.zeros(2),
            std=torch.tensor([0.2, 0.6]),
            dt=torch.tensor([0.1, 0.2]),
            mean_std=torch.tensor(0.4),
            sensitivity=torch.ones(2),
            mean_std_per_sensitivity=torch.tensor(0.4),
        )
        advantages = torch.tensor([2.0, 2.0])
        kl = torch.tensor([3.0, 1.0], requires_grad=True)
        result = policy_loss(terms, advantages, EPS, weight=StdWeight(), kl=kl, kl_coeff=0.1)
        # Surrogates -2.2 (clipped) and -1.4, weights 0.5 and 1.5.
        torch.testing.assert_close(result.loss, torch.tensor([-1.1 + 0.3, -2.1 + 0.1]))
        assert result.clipped.tolist() == [True, False]
        torch.testing.assert_close(result.ratio, torch.tensor([1.3, 0.7]))
        assert result.kl is not None and not result.kl.requires_grad
        (gradient,) = torch.autograd.grad(result.loss.sum(), kl)
        torch.testing.assert_close(gradient, torch.tensor([0.1, 0.1]))

    def test_a_kl_that_is_only_watched_changes_nothing(self) -> None:
        terms = terms_of(gaussian_case(0.01))
        advantages = torch.arange(6.0)
        plain = policy_loss(terms, advantages, EPS, weight=EqualWeight())
        watched = policy_loss(terms, advantages, EPS, weight=EqualWeight(), kl=torch.ones(6))
        assert torch.equal(plain.loss, watched.loss)
        assert plain.kl is None

    def test_no_gradient_through_the_weight(self) -> None:
        terms = terms_of(gaussian_case(0.01))
        log_ratio = terms.log_ratio.clone().requires_grad_()
        terms = replace(terms, log_ratio=log_ratio)
        result = policy_loss(terms, torch.ones(6), 0.5, weight=StdWeight())
        (gradient,) = torch.autograd.grad(result.loss.sum(), log_ratio)
        expected = -log_ratio.detach().exp() * terms.std / terms.std.mean()
        torch.testing.assert_close(gradient, expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kl_coeff": 0.1}, "needs the KL"),
            ({"kl_coeff": -0.1, "kl": torch.ones(6)}, "kl_coeff=-0.1"),
            ({"kl_coeff": 0.1, "kl": torch.ones(6, 1)}, r"\(6, 1\)"),
        ],
    )
    def test_refuses(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            policy_loss(
                terms_of(gaussian_case(0.01)), torch.ones(6), EPS, weight=EqualWeight(), **arguments
            )
