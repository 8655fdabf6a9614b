"""BranchGRPO's split noise: siblings are correlated, and each of them is still standard normal."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import CPS, DanceSDE, FlowSDE

NOISE = KeyedNoise(4, 1)
ETA, STEPS = 0.3, 4
STD = ETA / math.sqrt(STEPS)  # of Dance-SDE on equal steps


def plan(branching: list[list[int]], eta: float = ETA) -> ExplorationSchedule:
    splits = torch.tensor(branching)
    levels = torch.full(splits.shape, eta)
    levels[:, -1] = 0
    return ExplorationSchedule(levels, splits)


def draw(schedule: ExplorationSchedule, sizes: list[int], **options: Any) -> RolloutTree:
    policy = ToyPolicy()
    index = options.pop("index", list(range(len(sizes))))
    return rollout(
        policy,
        options.pop("sde", DanceSDE()),
        policy.encode([0.1 * row for row in index]),
        schedule,
        torch.tensor(sizes),
        NOISE,
        torch.tensor(index),
        **options,
    )


def drawn(tree: RolloutTree, step: int) -> Tensor:
    """The noise of one level as it arrived in the latents, (edges, 4)."""
    at = tree.transitions.step == step
    edges = tree.transitions.select(at)
    return ((edges.next_latents - edges.mean) / STD).flatten(1).double()


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shared_start", [False, True])
def test_siblings_correlate_and_nobody_else_does(scale: float, shared_start: bool) -> None:
    prompts = 1500
    tree = draw(
        plan([[2, 3, 1, 1]] * prompts),
        [6] * prompts,
        split_scale=scale,
        shared_start=shared_start,
    )
    first = drawn(tree, 0).view(prompts, 2, 4)
    second = drawn(tree, 1).view(prompts, 2, 3, 4)
    third = drawn(tree, 2).view(prompts, 6, 4)  # noise without a split
    rho = 1 / (1 + scale**2)
    # 6,000 pairs at least: a correlation is known to 1.3 %, a variance to about as much.
    within = [first[:, 0] * first[:, 1], *(second[:, :, i] * second[:, :, i - 1] for i in range(3))]
    for products in within:
        assert float(products.mean()) == pytest.approx(rho, abs=0.05)
    cousins = second[:, 0, 0] * second[:, 1, 0]
    strangers = second[1:, 0, 0] * second[:-1, 0, 0]
    generations = first[:, 0] * second[:, 0, 0]
    single = third[:, 0] * third[:, 1]
    for products in (cousins, strangers, generations, single):
        assert float(products.mean()) == pytest.approx(0.0, abs=0.05)
    for noise in (first, second, third):
        flat = noise.flatten()
        assert float(flat.mean()) == pytest.approx(0.0, abs=0.05)
        assert float(flat.var()) == pytest.approx(1.0, abs=0.05)
        assert float((flat.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.02)


def test_is_the_formula_of_the_paper_with_a_key_per_parent() -> None:
    tree = draw(plan([[2, 2, 1, 1]]), [4], index=[33], split_scale=4.0)
    for step, parents in ((0, [0]), (1, [0, 1])):
        children = torch.arange(2 * len(parents))
        keys = torch.stack(
            [torch.full_like(children, 33), children, torch.full_like(children, step)], dim=1
        )
        eta = NOISE.normal("step", keys, (4,)).double()
        above = keys[: len(parents)].clone()
        xi_0 = NOISE.normal("split", above, (4,)).double().repeat_interleave(2, dim=0)
        expected = (xi_0 + 4 * eta) / math.sqrt(17)
        # The toy's latents are (1, 2, 2), and a draw fills its shape in order.
        torch.testing.assert_close(drawn(tree, step), expected, atol=1e-5, rtol=0)


def test_without_a_scale_nothing_changes_and_chains_never_do() -> None:
    tree = plan([[2, 3, 1, 1]])
    plain = draw(tree, [6])
    keys = torch.tensor([[0, child, 0] for child in range(2)])
    eta = NOISE.normal("step", keys, (4,)).double()
    torch.testing.assert_close(drawn(plain, 0), eta, atol=1e-5, rtol=0)
    assert torch.equal(plain.latents, draw(tree, [6], split_scale=None).latents)
    assert not torch.equal(plain.latents, draw(tree, [6], split_scale=4.0).latents)
    chains = plan([[1, 1, 1, 1]])
    assert torch.equal(draw(chains, [3]).latents, draw(chains, [3], split_scale=4.0).latents)


@pytest.mark.parametrize("sde", [FlowSDE(), DanceSDE(), CPS()])
def test_the_log_prob_is_that_of_the_marginal_and_the_first_ratio_is_one(sde: Any) -> None:
    schedule = plan([[2, 3, 1, 1]] * 2)
    tree = draw(schedule, [6, 6], sde=sde, split_scale=1.0)
    edges, policy = tree.transitions, ToyPolicy()
    prediction = policy(
        edges.latents, tree.sigmas[edges.step], policy.encode([0.0, 0.1]).select(edges.row)
    )
    sigmas = tree.sigmas[edges.step], tree.sigmas[edges.step + 1]
    again = sde.step(prediction, edges.latents, *sigmas, torch.full((len(edges),), ETA))
    # Bit for bit: no term of the score knows of the siblings.
    assert torch.equal(again.log_prob(edges.next_latents), edges.log_prob)
    normal = torch.distributions.Normal(again.mean, again.std.expand_as(again.mean))
    expected = normal.log_prob(edges.next_latents).flatten(1).mean(1)
    torch.testing.assert_close(edges.log_prob, expected.detach(), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    factors=st.lists(st.lists(st.integers(1, 3), min_size=3, max_size=3), min_size=2, max_size=4),
    roots=st.integers(1, 2),
    shared_start=st.booleans(),
    data=st.data(),
)
def test_a_prompt_does_not_notice_its_neighbors(
    factors: list[list[int]], roots: int, shared_start: bool, data: st.DataObject
) -> None:
    branching = [[*row, 1] for row in factors]
    sizes = [roots * math.prod(row) for row in branching]
    order = data.draw(st.permutations(range(len(sizes))))
    keep = order[: data.draw(st.integers(1, len(sizes)))]
    index = [5 * row + 3 for row in range(len(sizes))]
    options: dict[str, Any] = {"shared_start": shared_start, "split_scale": 2.0}
    whole = draw(plan(branching), sizes, index=index, **options)
    part = draw(
        plan([branching[row] for row in keep]),
        [sizes[row] for row in keep],
        index=[index[row] for row in keep],
        **options,
    )
    for new, old in enumerate(keep):
        assert torch.equal(part.latents[part.row == new], whole.latents[whole.row == old])
        new_edges = part.transitions.select(part.transitions.row == new)
        old_edges = whole.transitions.select(whole.transitions.row == old)
        assert torch.equal(new_edges.next_latents, old_edges.next_latents)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_refuses_what_makes_siblings_equal_or_nothing(scale: float) -> None:
    with pytest.raises(ValueError, match=r"split_scale=.* must be a finite number above 0"):
        draw(plan([[2, 1, 1, 1]]), [2], split_scale=scale)
