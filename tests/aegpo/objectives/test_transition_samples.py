"""Replay: the deal of transitions to updates, the ratio's terms, and the old means anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives import EqualWeight, SensitivityWeight, TransitionWeight
from aegpo.objectives.surrogate import policy_loss
from aegpo.objectives.transition_samples import KLNormalization, Replay
from aegpo.rollout import rollout
from aegpo.sde import CPS, SDE, DanceSDE, FlowSDE

INDEX = torch.tensor([40, 7, 23, 5])
SIZES = torch.tensor([2, 5, 3, 4])
STEPS = torch.tensor(
    [[1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool
)


def replay(
    prompts: list[int],
    policy: ToyPolicy | None = None,
    sde: SDE | None = None,
    steps: Tensor = STEPS,
) -> Replay:
    """The rollout of some of the four prompts, as a rank that holds only these would have it."""
    rows = torch.tensor(prompts)
    policy, sde = policy or ToyPolicy(), sde or FlowSDE()
    schedule = ExplorationSchedule.from_mask(steps, 0.7).select(rows)
    cond = policy.encode([0.1 * (1 + prompt) for prompt in prompts])
    tree = rollout(policy, sde, cond, schedule, SIZES[rows], KeyedNoise(3), INDEX[rows])
    return Replay(policy, sde, cond, tree, schedule, torch.ones(len(tree.transitions)))


def deal(held: Replay, index: Tensor, num_updates: int, noise: KeyedNoise) -> dict[int, list[int]]:
    """Update of each transition of each prompt, in the order of the prompt's transitions."""
    update = torch.full((len(held.tree.transitions),), -1)
    for number, rows in enumerate(held.split(index, num_updates, noise)):
        assert bool((update[rows] == -1).all())
        update[rows] = number
    assert bool((update >= 0).all())
    prompt = held.tree.transitions.row
    return {key: update[prompt == row].tolist() for row, key in enumerate(index.tolist())}


@pytest.mark.parametrize("num_updates", [1, 2, 3])
def test_the_deal_is_a_permutation_that_gives_every_update_of_every_prompt(
    num_updates: int,
) -> None:
    held = replay([0, 1, 2, 3])
    dealt = deal(held, INDEX, num_updates, KeyedNoise(3))
    edges = dict(zip(INDEX.tolist(), (SIZES * STEPS.sum(1)).tolist(), strict=True))
    assert {key: len(updates) for key, updates in dealt.items()} == edges
    for updates in dealt.values():
        counts = torch.bincount(torch.tensor(updates), minlength=num_updates)
        assert int(counts.max() - counts.min()) <= 1


def test_the_deal_does_not_depend_on_which_rank_holds_a_prompt() -> None:
    noise = KeyedNoise(3, iteration=2)
    whole = deal(replay([0, 1, 2, 3]), INDEX, 3, noise)
    shares = [deal(replay(own), INDEX[own], 3, noise) for own in ([3, 1], [2, 0])]
    assert shares[0] | shares[1] == whole


def test_the_deal_is_another_one_in_every_iteration() -> None:
    held = replay([0, 1, 2, 3])
    first, second = (deal(held, INDEX, 2, KeyedNoise(3, iteration)) for iteration in (0, 1))
    assert first != second
    assert first == deal(held, INDEX, 2, KeyedNoise(3, 0))


def test_terms_of_an_unchanged_policy_are_zero_for_any_rows() -> None:
    held = replay([0, 1, 2, 3])
    for rows in torch.randperm(len(held.tree.transitions)).split(4):
        step, terms = held.terms(rows)
        assert float(terms.log_ratio.detach().abs().max()) < 1e-7
        assert float(terms.drift.detach().abs().max()) < 1e-12
        torch.testing.assert_close(step.mean, held.tree.transitions.mean[rows])


def test_terms_of_a_changed_policy_follow_their_definitions() -> None:
    policy = ToyPolicy()
    held = replay([0, 1, 2, 3], policy)
    policy.speed.data += 0.05
    rows = torch.arange(len(held.tree.transitions))
    transitions = held.tree.transitions
    step, terms = held.terms(rows)
    mean, old = step.mean.detach().double(), transitions.mean.double()
    std = terms.std.double()[:, None, None, None]
    new = torch.distributions.Normal(mean, std).log_prob(transitions.next_latents.double())
    before = torch.distributions.Normal(old, std).log_prob(transitions.next_latents.double())
    ratio = (new - before).flatten(1).mean(1)
    assert float(ratio.abs().min()) > 1e-6
    torch.testing.assert_close(terms.log_ratio.detach().double(), ratio, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(
        terms.drift.detach().double(),
        ((mean - old) ** 2 / (2 * std**2)).flatten(1).mean(1),
        rtol=1e-3,
        atol=1e-9,
    )
    torch.testing.assert_close(terms.dt, torch.full((len(rows),), 0.2))  # five equal steps
    torch.testing.assert_close(terms.mean_std, terms.std.mean())
    # A part of the transitions is weighed against the same mean as all of them.
    assert torch.equal(held.terms(rows[:2])[1].mean_std, terms.mean_std)


EARLY = torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.bool).expand(4, 5)


def gradient_scales(held: Replay, weight: TransitionWeight) -> Tensor:
    """Gradient of each transition's loss by the prediction, per unit of the noise drawn, (E,)."""
    predictions: list[Tensor] = []
    hook = held.policy.register_forward_hook(lambda module, args, out: predictions.append(out))
    rows = torch.arange(len(held.tree.transitions))
    step, terms = held.terms(rows)
    hook.remove()
    loss = policy_loss(terms, torch.ones(len(rows)), 0.5, weight=weight).loss.sum()
    (gradient,) = torch.autograd.grad(loss, predictions[0])
    noise = (held.tree.transitions.next_latents - step.mean.detach()) / step.std
    return gradient.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)


@pytest.mark.parametrize("sde", [FlowSDE(), DanceSDE(), CPS()], ids=lambda sde: type(sde).__name__)
def test_sensitivity_weights_give_every_step_the_same_gradient_by_the_prediction(sde: SDE) -> None:
    held = replay([0, 1, 2, 3], sde=sde, steps=EARLY)
    plain = gradient_scales(held, EqualWeight())
    assert float(plain.max() / plain.min()) > 1.3  # 1.37 for DanceSDE
    balanced = gradient_scales(held, SensitivityWeight())
    torch.testing.assert_close(balanced, balanced.mean().expand_as(balanced), rtol=1e-4, atol=0)
    _, terms = held.terms(torch.arange(len(held.tree.transitions)))
    assert float(SensitivityWeight()(terms).weight.mean()) == pytest.approx(1.0)


def test_the_sensitivity_of_flow_sde_is_the_closed_form() -> None:
    held = replay([0, 1, 2, 3])
    step = held.tree.transitions.step
    dt = held.tree.sigmas[step] - held.tree.sigmas[step + 1]
    # dt (1 + a²/2) with a = 0.7, and dt at sigma = 1.
    expected = torch.where(step == 0, dt, dt * (1 + 0.7**2 / 2))
    torch.testing.assert_close(held.sensitivity, expected)


def test_weights_are_set_against_the_mean_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, other = replay([0, 1, 2, 3]), replay([2, 3])
    _, terms = other.terms(torch.arange(len(other.tree.transitions)))
    theirs = iter([terms.std, terms.std / terms.sensitivity])
    monkeypatch.setattr(
        "aegpo.objectives.transition_samples.all_gather_rows",
        lambda rows: (torch.cat([rows, next(theirs)]), slice(0)),
    )
    mine = replay([0, 1])
    torch.testing.assert_close(mine.mean_std, whole.mean_std)
    torch.testing.assert_close(mine.mean_std_per_sensitivity, whole.mean_std_per_sensitivity)


def test_rescoring_makes_the_present_policy_the_old_one_and_says_by_how_much() -> None:
    policy = ToyPolicy()
    held = replay([0, 1, 2, 3], policy)
    rows = torch.arange(len(held.tree.transitions))
    held.rescore(list(rows.split(5)))
    assert float(held.change) < 1e-6
    policy.speed.data += 0.05
    log_prob = held.step(rows).log_prob(held.tree.transitions.next_latents).detach()
    expected = (log_prob - held.tree.transitions.log_prob).abs().max()
    before = held.tree.transitions.mean.clone()
    held.rescore(list(rows.split(5)))
    assert float(held.change) == pytest.approx(float(expected), rel=1e-4)
    _, terms = held.terms(rows)
    assert float(terms.log_ratio.detach().abs().max()) == 0.0
    assert torch.equal(held.tree.transitions.mean, before)  # what was rolled out stays


@pytest.mark.parametrize("eta", [0.7, 0.9])
def test_the_diffusion_coefficient_divides_the_kl_of_flow_grpo(eta: float) -> None:
    # SD 3.5's ten steps: the two forms differ by 1 / dt, from 25.1 at the first to 3.7.
    levels = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]
    policy = ToyPolicy()
    policy.sigmas = lambda num_steps: torch.tensor(levels)  # type: ignore[method-assign]
    steps = torch.ones(1, 10, dtype=torch.bool)
    steps[:, -1] = False
    schedule = ExplorationSchedule.from_mask(steps, eta)
    cond = policy.encode([0.3])
    tree = rollout(policy, FlowSDE(), cond, schedule, torch.tensor([2]), KeyedNoise(3), INDEX[:1])
    advantages = torch.ones(len(tree.transitions))
    policy.speed.data += 0.1  # away from the reference

    def kl(normalization: KLNormalization) -> Tensor:
        held = Replay(
            policy,
            FlowSDE(),
            cond,
            tree,
            schedule,
            advantages,
            kl_coeff=1.0,
            kl_normalization=normalization,
        )
        terms = held.loss(torch.arange(len(advantages)))
        assert terms.kl is not None
        plain = Replay(policy, FlowSDE(), cond, tree, schedule, advantages)
        loss = terms.loss - plain.loss(torch.arange(len(advantages))).loss
        assert torch.allclose(loss, terms.kl, atol=1e-5)  # what is reported is what is minimized
        return terms.kl

    step = tree.transitions.step
    sigma, after = tree.sigmas[step], tree.sigmas[step + 1]
    # sd3_sde_with_logprob: std_t without the step's length, and sigmas[1] where sigma is 1.
    std = eta * (sigma / (1 - torch.where(sigma == 1, tree.sigmas[1], sigma))).sqrt()
    held = Replay(policy, FlowSDE(), cond, tree, schedule, advantages)
    with torch.no_grad():
        mean = held.step(torch.arange(len(step))).mean
        with policy.reference():
            reference = held.step(torch.arange(len(step))).mean
    expected = (mean - reference).square().flatten(1).mean(1) / (2 * std.square())
    theirs, ours = kl("diffusion"), kl("variance")
    assert torch.allclose(theirs, expected, rtol=1e-3)
    ratio = ours / theirs
    assert torch.allclose(ratio, 1 / (sigma - after), rtol=1e-3)
    assert [round(float(ratio[step == one][0]), 1) for one in (0, 8)] == [25.1, 3.7]
