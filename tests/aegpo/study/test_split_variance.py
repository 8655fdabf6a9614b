"""The variance between siblings against a loop over nodes, and against its expectation."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_step_variance import Eraser
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import DanceSDE
from aegpo.study.split_variance import split_variance


class Still(Eraser):
    """Does not move by itself."""

    def forward(self, latents: Tensor, sigma: Tensor, cond: object) -> Tensor:
        return torch.zeros_like(latents)


def grow(
    eta: list[float], branching: list[int], size: int, prompts: int, **options: bool
) -> RolloutTree:
    schedule = ExplorationSchedule(
        torch.tensor([eta] * prompts), torch.tensor([branching] * prompts)
    )
    policy = Still()
    return rollout(
        policy,
        DanceSDE(),
        policy.encode([""] * prompts),
        schedule,
        torch.full((prompts,), size),
        KeyedNoise(2),
        torch.arange(prompts),
        **options,
    )


def explicit(
    eta: list[float], branching: list[int], rewards: list[float], shared_start: bool
) -> dict[int, list[tuple[float, int]]]:
    """(variance, freedom) of every split of one prompt by step, from nested lists of rewards.

    The leaves lie in the order of the tree, so it can be cut out of the list of rewards.
    """
    noisy = [step for step, level in enumerate(eta) if level > 0]
    factors = {step: branching[step] for step in noisy}
    roots = len(rewards) // math.prod(branching)
    if shared_start:
        factors[noisy[0]] *= roots
        roots = 1
    found: dict[int, list[tuple[float, int]]] = {step: [] for step in noisy}

    def node(leaves: list[float], depth: int) -> tuple[float, float]:
        """Mean value of a node and the variance of its error."""
        if depth == len(noisy):
            return leaves[0], 0.0
        step = noisy[depth]
        count = len(leaves) // factors[step]
        parts = [leaves[i * count : (i + 1) * count] for i in range(factors[step])]
        below = [pair for pair in (node(part, depth + 1) for part in parts) if pair[0] == pair[0]]
        if not below:
            return math.nan, math.nan
        mean = sum(value for value, _ in below) / len(below)
        if len(parts) == 1:
            return below[0]
        if len(below) == 1:
            return mean, math.nan
        between = sum((value - mean) ** 2 for value, _ in below) / (len(below) - 1)
        noise = sum(error for _, error in below) / len(below)
        if noise == noise:
            found[step].append((between - noise, len(below) - 1))
        return mean, between / len(below)

    per_root = len(rewards) // roots
    for root in range(roots):
        node(rewards[root * per_root : (root + 1) * per_root], 0)
    return found


@settings(max_examples=60, deadline=None)
@given(
    factors=st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=5),
    roots=st.integers(1, 3),
    prompts=st.integers(1, 3),
    shared_start=st.booleans(),
    seed=st.integers(0, 1000),
    missing=st.sampled_from([0.0, 0.3]),
)
def test_equals_a_loop_over_the_nodes(
    factors: list[int], roots: int, prompts: int, shared_start: bool, seed: int, missing: float
) -> None:
    # 0 is a deterministic step, 1 a noisy one without a split.
    eta = [0.3 if factor else 0.0 for factor in factors] + [0.0]
    branching = [max(factor, 1) for factor in factors] + [1]
    size = roots * math.prod(branching)
    tree = grow(eta, branching, size, prompts, shared_start=shared_start)
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(prompts * size, generator=generator)
    rewards[torch.rand(len(rewards), generator=generator) < missing] = math.nan
    ours = split_variance(tree, rewards, prompts)
    squares, freedom = torch.zeros(2, prompts, len(eta), dtype=torch.float64)
    if any(eta):
        for row in range(prompts):
            own = rewards[row * size : (row + 1) * size].double().tolist()
            for step, splits in explicit(eta, branching, own, shared_start).items():
                squares[row, step] = sum(value * weight for value, weight in splits)
                freedom[row, step] = sum(weight for _, weight in splits)
    assert torch.equal(ours.freedom, freedom)
    torch.testing.assert_close(ours.squares, squares, rtol=1e-9, atol=1e-12)


def variances(eta: list[float]) -> list[float]:
    """Variance of the final sum of four latents due to each step's noise alone, in closed form.

    Dance-SDE at velocity 0: x' = x (1 - eta² / (2 sigma T)) + eta / sqrt(T) z.
    """
    steps = len(eta)
    shrink = [1 - level**2 / (2 * (1 - i / steps) * steps) for i, level in enumerate(eta)]
    return [4 * level**2 / steps * math.prod(shrink[i + 1 :]) ** 2 for i, level in enumerate(eta)]


ETA = [0.0, 0.3, 0.0, 0.3, 0.3, 0.0]


def pooled(branching: list[int], size: int) -> tuple[Tensor, RolloutTree, Tensor]:
    tree = grow(ETA, branching, size, prompts=600)
    rewards = tree.latents.flatten(1).sum(1)
    terms = split_variance(tree, rewards, 600)
    return terms.squares.sum(0) / terms.freedom.sum(0), tree, rewards


def test_is_unbiased_where_the_naive_variance_is_not() -> None:
    """Splits at 1 and 3, noise without a split at 4, which goes to the split above it."""
    one, three, four = (variances(ETA)[step] for step in (1, 3, 4))
    ours, tree, rewards = pooled([1, 2, 1, 2, 1, 1], 4)
    # 600 and 1,200 degrees of freedom: 6 and 4 % of the variance between siblings.
    assert float(ours[3]) == pytest.approx(three + four, rel=0.15)
    assert float(ours[1]) == pytest.approx(one, rel=0.3)
    assert ours[[0, 2, 4, 5]].isnan().all()
    values = tree.backup(rewards)[tree.transitions.step == 1].view(-1, 2)
    naive = float(values.var(dim=1).mean())
    assert naive == pytest.approx(one + (three + four) / 2, rel=0.2)  # nearly twice as much
    assert naive > 1.5 * one


def test_is_the_split_s_own_where_nothing_lies_between() -> None:
    ours, _, _ = pooled([1, 2, 1, 2, 3, 1], 12)
    expected = variances(ETA)
    for step, tolerance in ((1, 0.3), (3, 0.2), (4, 0.1)):
        assert float(ours[step]) == pytest.approx(expected[step], rel=tolerance)


def test_chains_tell_nothing_and_shared_starts_tell_of_the_first_step() -> None:
    chains = grow(ETA, [1] * 6, 4, 2)
    assert not split_variance(chains, torch.arange(8.0), 2).freedom.any()
    shared = grow(ETA, [1] * 6, 4, 2, shared_start=True)
    terms = split_variance(shared, torch.arange(8.0), 2)
    assert terms.freedom.tolist() == [[0, 3, 0, 0, 0, 0]] * 2
    assert (terms.squares[:, 1] / 3).tolist() == pytest.approx([5 / 3] * 2)  # of four in a row
    still = grow([0.0] * 6, [1] * 6, 2, 1)
    assert not split_variance(still, torch.arange(2.0), 1).freedom.any()
