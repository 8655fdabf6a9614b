"""DiffusionNFT: the loss and its gradient against the formulas, and the draws behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.exploration import AllSteps, ExplorationSchedule, FixedSplits, NoSteps, StepSelector
from aegpo.noise import KeyedNoise
from aegpo.objectives import NFT, Experience
from aegpo.objectives.forward.nft import NFTSamples, nft_loss
from aegpo.rollout import rollout
from aegpo.sde import ODE

INDEX = torch.tensor([40, 7, 23])
SIZES = torch.tensor([2, 5, 3])
ADVANTAGES = torch.tensor([-1.0, 1.0, 0.0, 7.0, -7.0, 0.5, -0.5, 2.0, -4.0, float("nan")])


def explicit_loss(
    v: np.ndarray,
    v_old: np.ndarray,
    x0: np.ndarray,
    x_t: np.ndarray,
    t: np.ndarray,
    r: np.ndarray,
    beta: float,
) -> np.ndarray:
    """The formulas of the paper and its public code, row by row, in float64."""
    losses = []
    for i in range(len(v)):
        v_plus = beta * v[i] + (1 - beta) * v_old[i]
        v_minus = (1 + beta) * v_old[i] - beta * v[i]
        terms = []
        for implicit in (v_plus, v_minus):
            difference = x0[i] - (x_t[i] - t[i] * implicit)
            terms.append(np.mean(difference**2) / max(np.mean(np.abs(difference)), 1e-5))
        losses.append((r[i] * terms[0] + (1 - r[i]) * terms[1]) / beta)
    return np.array(losses)


def random_rows(count: int = 6) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shape = (count, 2, 3, 3)
    clean, noise, velocity, old = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(4)
    )
    sigma = torch.rand(count, generator=draw, dtype=torch.float64) * 0.9 + 0.1
    each = sigma.view(-1, 1, 1, 1)
    return {
        "velocity": velocity,
        "old_velocity": old,
        "clean": clean,
        "noised": (1 - each) * clean + each * noise,
        "sigma": sigma,
        "optimality": torch.rand(count, generator=draw, dtype=torch.float64),
    }


@pytest.mark.parametrize("beta", [0.1, 0.7, 1.0, 2.0])
def test_the_loss_is_that_of_the_formulas(beta: float) -> None:
    rows = random_rows()
    expected = explicit_loss(*(value.numpy() for value in rows.values()), beta)
    np.testing.assert_allclose(nft_loss(**rows, beta=beta).numpy(), expected, rtol=1e-12)
    single = nft_loss(**{name: value.float() for name, value in rows.items()}, beta=beta)
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_gradient_at_the_old_policy_is_known_in_closed_form(beta: float) -> None:
    """(2 r - 1) 2 t (x_0 - x̂_0) / (d mean|x_0 - x̂_0|), whatever beta."""
    rows = random_rows()
    rows["velocity"] = rows["old_velocity"].clone().requires_grad_()
    nft_loss(**rows, beta=beta).sum().backward()
    t = rows["sigma"].view(-1, 1, 1, 1)
    difference = rows["clean"] - (rows["noised"] - t * rows["old_velocity"])
    scale = difference.abs().mean((1, 2, 3), keepdim=True)
    sign = (2 * rows["optimality"] - 1).view(-1, 1, 1, 1)
    expected = sign * 2 * t * difference / (18 * scale)
    torch.testing.assert_close(rows["velocity"].grad, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("optimality", "sign"), [(1.0, -1), (0.0, 1), (0.5, 0)])
def test_a_good_image_attracts_and_a_bad_one_repels(optimality: float, sign: int) -> None:
    rows = random_rows()
    rows["optimality"] = torch.full_like(rows["optimality"], optimality)
    rows["velocity"] = velocity = rows["old_velocity"].clone().requires_grad_()

    def distance() -> Tensor:
        implied = rows["noised"] - rows["sigma"].view(-1, 1, 1, 1) * velocity
        return (rows["clean"] - implied).flatten(1).norm(dim=1).detach()

    before = distance()
    nft_loss(**rows, beta=1.0).sum().backward()
    with torch.no_grad():
        velocity -= 0.1 * velocity.grad
    change = distance() - before
    assert bool((change.sign() == sign).all()) if sign else float(change.abs().max()) < 1e-12


def test_an_average_image_holds_the_policy_where_it_was() -> None:
    rows = random_rows()
    rows["optimality"] = torch.full_like(rows["optimality"], 0.5)
    near = rows["old_velocity"] + 0.01 * (rows["velocity"] - rows["old_velocity"])
    rows["velocity"] = near.clone().requires_grad_()
    nft_loss(**rows, beta=1.0).sum().backward()
    back = (rows["velocity"].grad * (near - rows["old_velocity"])).flatten(1).sum(1)
    assert bool((back > 0).all())  # descent leads back to the old prediction


# The samples of a rollout


def forward_samples(
    objective: NFT,
    policy: ToyPolicy,
    prompts: list[int] | None = None,
    iteration: int = 0,
    num_steps: int = 5,
    chosen: list[list[int]] | None = None,
) -> NFTSamples:
    """As a rank that holds only some of the three prompts would have them."""
    rows = torch.tensor([0, 1, 2] if prompts is None else prompts)
    noise = KeyedNoise(3, iteration)
    schedule = ExplorationSchedule.deterministic(len(rows), num_steps)
    cond = policy.encode([0.1 * (1 + row) for row in rows.tolist()])
    tree = rollout(policy, ODE(), cond, schedule, SIZES[rows], noise, INDEX[rows])
    groups = ADVANTAGES.split(SIZES.tolist())
    advantages = torch.cat([groups[row] for row in rows.tolist()])
    if (
        chosen is not None
    ):  # what the selector chose; the images are drawn without noise all the same
        eta = torch.zeros(len(rows), num_steps)
        for row, steps in enumerate(chosen):
            eta[row, steps] = 0.7
        schedule = ExplorationSchedule(eta, torch.ones_like(eta).long())
    policy.seen.clear()
    policy.evaluations.counts = dict.fromkeys(policy.evaluations.counts, 0)
    experience = Experience(
        policy, ODE(), cond, tree, schedule, advantages, advantages, INDEX[rows], noise
    )
    return objective.samples(experience)


@pytest.mark.parametrize(("beta", "kl_coeff"), [(1.0, 0.0), (0.3, 0.5)])
def test_the_gradient_of_all_samples_follows_from_the_formulas(
    beta: float, kl_coeff: float
) -> None:
    """By hand for the toy's one parameter, with theta_old and theta apart."""
    objective, policy = (
        NFT(beta=beta, advantage_clip=5.0, times_per_image=3, kl_coeff=kl_coeff),
        (ToyPolicy()),
    )
    policy.speed.data.fill_(0.6)
    samples = forward_samples(objective, policy)
    with objective.behavior(policy):  # theta_old is taken here
        pass
    policy.speed.data.fill_(0.9)
    rows = (samples.row >= 0).nonzero().flatten()
    terms = samples.loss(rows)
    terms.loss.sum().backward()

    x_t = policy.seen[0].double()
    tree = samples.experience.tree
    image = samples.image[rows]
    x0, t = tree.latents[image].double(), samples.sigma[rows].double().view(-1, 1, 1, 1)
    c = (0.1 * (1 + tree.row[image].double())).view(-1, 1, 1, 1)
    slope = (1 + c) * x_t * t  # dv / dspeed
    v, v_old, v_ref = (speed * slope - c for speed in (0.9, 0.6, 0.5))
    r = (ADVANTAGES[image].double() / 10 + 0.5).clamp(0, 1)
    gradient = torch.zeros((), dtype=torch.float64)
    expected = torch.zeros(len(rows), dtype=torch.float64)
    for sign, share in ((1, r), (-1, 1 - r)):
        residual = x0 - (x_t - t * (v_old + sign * beta * (v - v_old)))
        scale = residual.abs().mean((1, 2, 3))
        expected += 5 / beta * share * residual.square().mean((1, 2, 3)) / scale
        rise = (2 * residual * t * sign * beta * slope).mean((1, 2, 3))
        gradient += (5 / beta * share * rise / scale).sum()
    divergence = (v - v_ref).square().mean((1, 2, 3))
    gradient += kl_coeff * (2 * (v - v_ref) * slope).mean((1, 2, 3)).sum()
    torch.testing.assert_close(
        terms.loss.detach().double(), expected + kl_coeff * divergence, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(policy.speed.grad.double(), gradient, rtol=1e-4, atol=1e-5)
    if kl_coeff:
        torch.testing.assert_close(terms.kl.double(), divergence, rtol=1e-4, atol=1e-6)
    assert (terms.kl is None) == (kl_coeff == 0)


def test_an_image_is_noised_at_different_levels_with_noise_of_its_own() -> None:
    samples = forward_samples(NFT(times_per_image=4), policy := ToyPolicy())
    tree = samples.experience.tree
    assert samples.image.tolist() == [image for image in range(10) for _ in range(4)]
    levels = samples.sigma.reshape(10, 4)
    assert all(len(set(row.tolist())) == 4 for row in levels)
    assert set(levels.flatten().tolist()) == set(tree.sigmas[:-1].tolist())  # 1 is among them
    samples.loss(torch.arange(40))
    t = samples.sigma.view(-1, 1, 1, 1)
    noise = (policy.seen[0] - (1 - t) * tree.latents[samples.image]) / t
    assert all(torch.equal(seen, policy.seen[0]) for seen in policy.seen)  # old, new, reference
    assert len(policy.seen) == 3
    assert float(torch.pdist(noise.flatten(1)).min()) > 1e-2  # no row of noise twice
    assert float(noise.mean().abs()) < 0.25 and 0.8 < float(noise.std()) < 1.2


def test_what_is_noised_is_what_the_model_calls_data() -> None:
    """A diffusion model's schedule ends above 0, in latents of another scale than its data."""
    seen = []
    for scale in (1.0, 1.5):
        policy = ToyPolicy()
        policy.clean_latents = lambda latents, scale=scale: scale * latents  # type: ignore[method-assign]
        samples = forward_samples(NFT(times_per_image=2), policy)
        samples.loss(torch.arange(20))
        seen.append(policy.seen[0])
    data = samples.experience.tree.latents[samples.image]
    expected = 0.5 * (1 - samples.sigma.view(-1, 1, 1, 1)) * data
    torch.testing.assert_close(seen[1] - seen[0], expected, rtol=1e-4, atol=1e-6)


def test_levels_may_be_those_of_the_steps_that_the_selector_chose() -> None:
    objective = NFT(times_per_image=2, levels="selected")
    chosen = [[0, 1, 3], [2], [1, 2]]
    samples = forward_samples(objective, ToyPolicy(), chosen=chosen)
    drawn: dict[int, set[tuple[int, ...]]] = {0: set(), 1: set(), 2: set()}
    for image, prompt in enumerate(samples.experience.tree.row.tolist()):
        own = samples.image == image
        levels = samples.keys[own][:, 2].tolist()
        # None twice, and all of them where fewer were chosen than are to be drawn.
        assert len(set(levels)) == len(levels) == min(2, len(chosen[prompt]))
        assert set(levels) <= set(chosen[prompt])
        assert torch.equal(samples.sigma[own], samples.experience.tree.sigmas[levels])
        drawn[prompt].add(tuple(levels))
    assert len(drawn[2]) > 1  # the order, and so the choice, is an image's own
    assert samples.loss(torch.arange(len(samples.sigma))).loss.shape == samples.sigma.shape


def test_stratified_levels_lie_one_in_each_part_of_the_range() -> None:
    settings = {"times_per_image": 7, "levels": "stratified", "level_range": (0.1, 0.8)}
    whole = forward_samples(NFT(**settings), ToyPolicy())
    sigma = whole.sigma.reshape(10, 7)  # of images, here 1 - the share of the schedule
    edges = torch.linspace(0.9, 0.2, 8)
    assert bool((sigma <= edges[:-1] + 1e-6).all()) and bool((sigma >= edges[1:] - 1e-6).all())
    inside = ((edges[:-1] - sigma) / 0.1).flatten()
    assert 0.35 < float(inside.mean()) < 0.65 and float(inside.std()) > 0.2  # anywhere in its part
    assert len(set(inside.tolist())) == 70
    apart = forward_samples(NFT(**settings), ToyPolicy(), [2, 0])
    own = torch.cat([torch.arange(49, 70), torch.arange(0, 14)])
    assert torch.equal(apart.sigma, whole.sigma[own]) and torch.equal(apart.keys, whole.keys[own])
    assert not torch.equal(forward_samples(NFT(**settings), ToyPolicy(), iteration=1).sigma, sigma)
    NFT(**settings).validate(NoSteps(), 1)  # more levels than steps


def test_stratified_levels_follow_the_steps_of_the_schedule() -> None:
    """On a schedule that is not even, a share of it is one of its steps, not of its levels."""
    policy = ToyPolicy()
    policy.sigmas = lambda num_steps: torch.tensor([1.0, 0.9, 0.7, 0.1, 0.0])  # type: ignore[method-assign]
    objective = NFT(times_per_image=4, levels="stratified")
    sigma = forward_samples(objective, policy, num_steps=4).sigma.reshape(10, 4)
    for step, (high, low) in enumerate([(1.0, 0.9), (0.9, 0.7), (0.7, 0.1), (0.1, 0.0)]):
        own = sigma[:, step]
        assert bool((own <= high).all()) and bool((own > low).all())
        assert float(own.max() - own.min()) > 0.3 * (high - low)


def test_random_levels_may_be_those_of_a_part_of_the_schedule() -> None:
    samples = forward_samples(NFT(times_per_image=2, level_range=(0.2, 0.8)), ToyPolicy())
    assert {round(level, 5) for level in samples.sigma.tolist()} == {0.8, 0.6, 0.4}
    with pytest.raises(ValueError, match=r"NFT: times_per_image=4 .* 3 of them in the level_range"):
        NFT(times_per_image=4, level_range=(0.2, 0.8)).validate(NoSteps(), 5)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (NoSteps(), "takes the steps that NoSteps chooses"),
        (FixedSplits([0, 2]), "set step_selector.branching to 1"),
    ],
)
def test_selected_levels_need_steps_and_chains(selector: StepSelector, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NFT(levels="selected").validate(selector, 5)
    NFT(levels="random").validate(selector, 5)


def test_draws_depend_neither_on_the_rank_nor_on_the_micro_batch() -> None:
    objective, policy = NFT(times_per_image=3), ToyPolicy()
    whole = forward_samples(objective, policy)
    losses = whole.loss(torch.arange(30)).loss
    apart = forward_samples(objective, ToyPolicy(), [2, 0])
    own = torch.cat([torch.arange(21, 30), torch.arange(0, 6)])
    assert torch.equal(apart.sigma, whole.sigma[own])
    pieces = torch.cat([apart.loss(rows).loss for rows in torch.arange(15).split(4)])
    known = losses[own].isfinite()
    torch.testing.assert_close(pieces[known], losses[own][known])
    again = forward_samples(objective, ToyPolicy())
    assert torch.equal(again.sigma, whole.sigma)
    later = forward_samples(objective, ToyPolicy(), iteration=1)
    assert not torch.equal(later.sigma, whole.sigma)


def test_a_failed_reward_counts_for_nothing() -> None:
    samples = forward_samples(NFT(times_per_image=3), ToyPolicy())
    updates = samples.split(INDEX, 2, samples.experience.noise)
    dealt = torch.cat(updates).sort().values
    assert dealt.tolist() == list(range(27))  # not the last image's three
    assert bool(samples.loss(dealt).loss.isfinite().all())


def test_every_prediction_is_counted() -> None:
    for kl_coeff, reference in ((0.0, 0), (0.1, 30)):
        samples = forward_samples(NFT(times_per_image=3, kl_coeff=kl_coeff), policy := ToyPolicy())
        samples.loss(torch.arange(30))
        counts = policy.evaluations.counts
        assert counts["rollout"] == 30  # the old policy's, forward only
        assert counts["update"] == 3 * 30
        assert counts["reference"] == reference


def scored(samples: NFTSamples, policy: ToyPolicy, first: bool) -> tuple[Tensor, Tensor, int]:
    """Loss, gradient, and what the old predictions cost."""
    policy.speed.grad = None
    policy.evaluations.counts = dict.fromkeys(policy.evaluations.counts, 0)
    terms = (samples.first_loss if first else samples.loss)(torch.arange(27))
    terms.loss.sum().backward()
    assert policy.speed.grad is not None
    return terms.loss.detach(), policy.speed.grad.clone(), policy.evaluations.counts["rollout"]


def test_old_predictions_that_are_the_new_ones_are_not_made_again() -> None:
    for iteration, cost in ((0, 0), (1, 0), (2, 27)):  # the lag begins after one iteration
        objective, policy = NFT(times_per_image=3, decay_rate=0.2, decay_start=1), ToyPolicy()
        for done in range(iteration):
            policy.speed.data += 0.1
            objective.end_iteration(policy, done)
        samples = forward_samples(objective, policy, iteration=iteration)
        loss, gradient, asked = scored(samples, policy, first=False)
        first = scored(samples, policy, first=True)
        assert torch.equal(first[0], loss) and torch.equal(first[1], gradient)
        assert (asked, first[2]) == (27, cost)
    policy.speed.data.fill_(0.9)  # once the weights have moved, they are asked for
    later, _, asked = scored(samples, policy, first=False)
    assert asked == 27 and not torch.equal(later, loss)


def test_a_resumed_lag_is_seen_whatever_the_ramp_is_now() -> None:
    lagging, policy = NFT(decay_rate=0.5), ToyPolicy()
    lagging.end_iteration(policy, 0)
    for state, equal in ((lagging.state_dict(), False), ({}, True)):
        now = NFT(decay_max=0.0)
        now.load_state_dict(state)
        assert now.on_policy(1) is equal
        now.end_iteration(policy, 1)
        assert now.on_policy(2)


def test_the_average_of_the_policy_pulls_at_the_prediction() -> None:
    settings = {"times_per_image": 3, "kl_coeff": 0.0, "ema_decay_rate": 0.25}
    plain, policy = NFT(**settings), ToyPolicy()
    pulled = NFT(**settings, ema_kl_coeff=2.0)
    assert (plain.weight_copies, pulled.weight_copies) == (1, 2)
    for objective in (plain, pulled):
        policy.speed.data.fill_(0.5)
        with objective.behavior(policy), objective.averaged(policy):
            pass
        policy.speed.data.fill_(0.9)
        objective.end_iteration(policy, 0)
    mean = 0.25 * 0.5 + 0.75 * 0.9
    policy.speed.data.fill_(1.2)
    with pulled.averaged(policy):
        assert policy.speed.item() == pytest.approx(mean)
    without = scored(forward_samples(plain, policy, iteration=1), policy, first=False)
    samples = forward_samples(pulled, policy, iteration=1)
    loss, gradient, _ = scored(samples, policy, first=False)
    assert policy.evaluations.counts["reference"] == 27
    at = samples.noised(torch.arange(27))
    slope = (1 + at.cond.embeds.view(-1, 1, 1, 1)) * at.latents * at.sigma.view(-1, 1, 1, 1)
    squares = slope.square().mean((1, 2, 3))
    torch.testing.assert_close(loss - without[0], 2 * (1.2 - mean) ** 2 * squares)
    pull = 4 * (1.2 - mean) * squares.sum()
    torch.testing.assert_close(gradient - without[1], pull, rtol=1e-4, atol=1e-4)
    resumed = NFT(**settings, ema_kl_coeff=2.0)
    resumed.load_state_dict(pulled.state_dict())
    with resumed.averaged(policy):
        assert policy.speed.item() == pytest.approx(mean)


def test_theta_old_follows_by_the_schedule() -> None:
    objective = NFT(decay_rate=0.2, decay_max=0.5, decay_start=1)
    policy = ToyPolicy()
    with objective.behavior(policy):
        pass
    old, seen, expected = 0.5, [], []
    for iteration, decay in enumerate([0.0, 0.2, 0.4, 0.5, 0.5]):
        policy.speed.data.fill_(1.0 + iteration)
        objective.end_iteration(policy, iteration)
        old = decay * old + (1 - decay) * (1.0 + iteration)
        expected.append(old)
        with objective.behavior(policy):
            seen.append(policy.speed.item())
        assert policy.speed.item() == 1.0 + iteration
    assert seen == pytest.approx(expected, rel=1e-6)
    resumed = NFT()
    resumed.load_state_dict(objective.state_dict())
    with resumed.behavior(policy):
        assert float(policy.speed) == seen[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
        ({"times_per_image": 0}, "times_per_image=0"),
        ({"kl_coeff": -1.0}, "kl_coeff=-1.0"),
        ({"ema_kl_coeff": -1.0}, "ema_kl_coeff=-1.0"),
        ({"ema_decay_max": 1.0}, "ema_decay_max=1.0"),
        ({"decay_rate": -0.1}, "decay_rate=-0.1"),
        ({"decay_max": 1.0}, "decay_max=1.0"),
        ({"decay_start": -1}, "decay_start=-1"),
        ({"levels": "all"}, "levels='all'"),
        ({"level_range": (0.5, 0.5)}, r"level_range=\[0.5, 0.5\] must rise"),
        ({"level_range": (-0.1, 1.0)}, r"level_range=\[-0.1, 1.0\] must rise"),
        ({"levels": "selected", "level_range": (0.0, 0.5)}, "leave it at"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NFT(**settings)


def test_more_levels_than_steps_are_refused() -> None:
    NFT(times_per_image=5).validate(AllSteps(), 5)
    with pytest.raises(ValueError, match="times_per_image=6"):
        NFT(times_per_image=6).validate(AllSteps(), 5)
