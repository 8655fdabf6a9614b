"""Advantage Weighted Matching: its surrogate and first gradient against the formulas, its costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_nft import ADVANTAGES, forward_samples
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.objectives import AWM
from aegpo.objectives.forward.likelihood import WEIGHTINGS, log_likelihood

PLAIN: dict[str, Any] = {"kl_coeff": 0.0, "ema_kl_coeff": 0.0, "times_per_image": 3}


def explicit(error: Tensor, sigma: Tensor, weighting: str) -> Tensor:
    """The weightings as the public code has them, but for constants."""
    return {
        "uniform": -error,
        "t": -error * sigma,
        "t_squared": -error * sigma**2,
        "huber": -((error + 1e-10) ** 0.5) * sigma,
        "generalized_huber": -((error + 1e-10) ** 0.25) * sigma / 0.25,
    }[weighting]


def test_golden_numbers_of_the_weightings() -> None:
    """An error of 0.16 at σ = 0.5, by hand."""
    target, sigma = torch.zeros(1, 2, 2), torch.tensor([0.5])
    velocity = torch.full_like(target, 0.4)
    by_hand = {
        "uniform": -0.16,
        "t": -0.08,
        "t_squared": -0.04,
        "huber": -0.2,  # 0.5 · 0.4
        "generalized_huber": -1.264911,  # 0.5 · 0.632456 · 4
    }
    assert set(by_hand) == set(WEIGHTINGS)
    for weighting, expected in by_hand.items():
        found = log_likelihood(velocity, target, sigma, weighting)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_first_gradient_is_the_advantage_times_that_of_the_error(weighting: str) -> None:
    """By hand for the toy's one parameter: A · w(σ) ∇l, whatever the kind of error."""
    policy = ToyPolicy()
    policy.speed.data.fill_(0.9)
    samples = forward_samples(AWM(weighting=weighting, **PLAIN), policy)
    rows = (samples.row >= 0).nonzero().flatten()
    terms = samples.first_loss(rows)
    terms.loss.sum().backward()
    assert terms.ratio is not None and torch.equal(terms.ratio, torch.ones(27))
    assert terms.clipped is not None and not bool(terms.clipped.any())

    at = samples.noised(rows)
    speed = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    sigma, number = at.sigma.double().view(-1, 1, 1, 1), at.cond.embeds.double().view(-1, 1, 1, 1)
    velocity = speed * (1 + number) * at.latents.double() * sigma - number
    clean = samples.experience.tree.latents[samples.image[rows]].double()
    target = (at.latents.double() - clean) / sigma  # ε - x_0, from x_t = x_0 + σ (ε - x_0)
    error = (velocity - target).square().mean((1, 2, 3))
    weighed = ADVANTAGES[samples.image[rows]].double().clamp(-5, 5) / 5
    expected = -(weighed * explicit(error, at.sigma.double(), weighting)).sum()
    (gradient,) = torch.autograd.grad(expected, speed)
    assert policy.speed.grad is not None
    torch.testing.assert_close(policy.speed.grad.double(), gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms.loss.detach().double(), -weighed, rtol=1e-6, atol=1e-7)


def costs(policy: ToyPolicy) -> tuple[int, int, int]:
    counts = policy.evaluations.counts
    return counts["rollout"], counts["update"], counts["reference"]


def test_old_values_cost_nothing_at_first_and_one_evaluation_later() -> None:
    samples = forward_samples(AWM(weighting="t", **PLAIN), policy := ToyPolicy())
    first, later = torch.arange(12), torch.arange(12, 27)
    samples.rescore([later[:8], later[8:]])
    assert costs(policy) == (15, 0, 0)
    old = samples.noised(later)
    start = log_likelihood(
        policy(old.latents, old.sigma, old.cond), old.draw - old.clean, old.sigma, "t"
    ).detach()
    policy.evaluations.counts = dict.fromkeys(policy.evaluations.counts, 0)
    samples.first_loss(first)
    assert costs(policy) == (0, 36, 0)
    policy.speed.data.fill_(0.8)
    terms = samples.loss(later)
    now = log_likelihood(
        policy(old.latents, old.sigma, old.cond), old.draw - old.clean, old.sigma, "t"
    )
    torch.testing.assert_close(terms.ratio, (now - start).exp().detach())
    again = samples.loss(first)  # a second epoch: compared with what the first one began with
    assert again.ratio is not None and float((again.ratio - 1).abs().max()) > 1e-3
    assert costs(policy)[0] == 0


def test_a_lagging_policy_is_what_is_compared_with() -> None:
    objective, policy = AWM(**PLAIN, decay_rate=0.25, decay_max=0.5), ToyPolicy()
    assert objective.weight_copies == 1 and AWM(**PLAIN).weight_copies == 0
    assert AWM().weight_copies == 1  # of the average
    with objective.behavior(policy):
        pass
    policy.speed.data.fill_(0.9)
    objective.end_iteration(policy, 0)
    samples = forward_samples(objective, policy, iteration=1)
    rows = torch.arange(27)
    terms = samples.first_loss(rows)
    assert costs(policy) == (27, 81, 0)
    at = samples.noised(rows)

    def likelihood() -> Tensor:
        velocity = policy(at.latents, at.sigma, at.cond).detach()
        return log_likelihood(velocity, at.draw - at.clean, at.sigma, "generalized_huber")

    with objective.behavior(policy):
        old = likelihood()
    torch.testing.assert_close(terms.ratio, (likelihood() - old).exp())


def test_the_loose_clip_holds_what_has_grown_beyond_twice() -> None:
    samples = forward_samples(AWM(weighting="uniform", **PLAIN), policy := ToyPolicy())
    rows = (samples.row >= 0).nonzero().flatten()
    samples.first_loss(rows)
    samples.old[rows] -= torch.tensor([0.5, 1.0, 2.0]).repeat(9)  # ratios of 1.6, 2.7 and 7.4
    terms = samples.loss(rows)
    good = samples.experience.advantages[samples.image[rows]] > 0
    assert torch.equal(terms.clipped, good & (terms.ratio > 2))
    assert bool(terms.clipped.any())
    assert policy.evaluations.counts["rollout"] == 0


def test_a_bound_on_the_kl_drops_what_has_moved_too_far_the_way_it_is_asked_to() -> None:
    def gradient(bound: float | None) -> tuple[float, Tensor, Tensor]:
        settings = PLAIN | {"weighting": "t", "divergence_bound": bound}
        samples = forward_samples(AWM(**settings), policy := ToyPolicy())
        rows = (samples.row >= 0).nonzero().flatten()
        samples.first_loss(rows)
        policy.speed.data.fill_(0.8)
        terms = samples.loss(rows)
        terms.loss.sum().backward()
        at = samples.noised(rows)
        slope = (1 + at.cond.embeds.view(-1, 1, 1, 1)) * at.latents * at.sigma.view(-1, 1, 1, 1)
        exact = at.sigma * (0.3**2 * slope.square()).mean((1, 2, 3))
        asked = at.advantages * terms.ratio.log() > 0
        assert policy.speed.grad is not None
        return policy.speed.grad.item(), terms.clipped, asked & (exact >= (bound or 0.0))

    far, dropped, expected = gradient(0.02)
    assert torch.equal(dropped, expected) and 0 < int(dropped.sum()) < 20
    assert far != gradient(None)[0]
    assert gradient(1e3)[1].sum() == 0


def test_an_image_without_advantage_is_left_out_unless_something_pulls_at_it() -> None:
    rows = torch.arange(27)
    average = ADVANTAGES == 0
    samples = forward_samples(AWM(**PLAIN), ToyPolicy())
    assert torch.equal(samples.active(rows), rows[~average[samples.image[rows]]])
    for penalty in ({"kl_coeff": 0.1}, {"ema_kl_coeff": 0.1}):
        samples = forward_samples(AWM(**PLAIN | penalty), ToyPolicy())
        assert torch.equal(samples.active(rows), rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "sigma"}, "weighting='sigma' is unknown; use one of uniform"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"clip_range": 1.5}, "clip_range=1.5"),
        ({"divergence_bound": 0.0, "weighting": "t"}, "divergence_bound=0.0"),
        ({"divergence_bound": 0.1}, "not with generalized_huber"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
        ({"times_per_image": 0}, "times_per_image=0"),
        ({"ema_decay_rate": -0.1}, "ema_decay_rate=-0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWM(**settings)
