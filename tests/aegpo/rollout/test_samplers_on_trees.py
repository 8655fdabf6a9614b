"""Samplers on ragged trees: paths start anew behind noise, and stochastic steps are untouched."""

from __future__ import annotations

import pytest
import torch
from test_loop import draw, schedule
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.rollout import RolloutTree
from aegpo.samplers import AdamsBashforth, DPMSolver, Sampler, UniPC
from aegpo.sde import FlowSDE

PLAN = schedule(
    [
        [0, 0, 0.7, 0, 0, 0, 0],  # one stretch of two steps, one of four
        [0.5, 0, 0, 0.5, 0.5, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0.6, 0, 0.6, 0, 0.6, 0],  # no two steps without noise behind each other
    ],
    [[1, 1, 3, 1, 1, 1, 1], [2, 1, 1, 1, 2, 1, 1], [1] * 7, [1, 2, 1, 1, 1, 2, 1]],
)
SIZES = [6, 4, 2, 4]
each = pytest.mark.parametrize("sampler", [AdamsBashforth(), UniPC(), DPMSolver()], ids=repr)


def stretch(sampler: Sampler, policy: ToyPolicy, x: Tensor, number: float, steps: range) -> Tensor:
    """Steps without noise of one latent, from a fresh start."""
    cond, sigmas, seen = policy.encode([number]), policy.sigmas(7), []
    if len(steps) == 0:
        return x
    for row, step in zip(sampler.weights(sigmas, steps[0]).float(), steps, strict=False):
        seen.append(policy(x[None], sigmas[step : step + 1], cond)[0].detach())
        x = x + sum(weight * v for weight, v in zip(row, seen, strict=False))
    return x


@each
@pytest.mark.parametrize("shared_start", [False, True])
def test_every_stretch_is_a_path_of_its_own(sampler: Sampler, shared_start: bool) -> None:
    policy = ToyPolicy()
    sizes = [6, 4, 1 if shared_start else 2, 4]
    tree = draw(PLAN, sizes, policy=policy, sampler=sampler, shared_start=shared_start)
    edges = tree.transitions
    numbers = [0.1 * row for row in range(10, 14)]

    def arrives(x: Tensor, row: int, first: int, last: int, expected: Tensor) -> None:
        got = stretch(sampler, policy, x, numbers[row], range(first, last))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    for edge, above in enumerate(tree.parent.tolist()):
        row, step = int(edges.row[edge]), int(edges.step[edge])
        if above >= 0:
            start = int(edges.step[above]) + 1
            arrives(edges.next_latents[above], row, start, step, edges.latents[edge])
    for leaf, edge in enumerate(tree.leaf_edge.tolist()):
        if edge >= 0:
            row, start = int(tree.row[leaf]), int(edges.step[edge]) + 1
            arrives(edges.next_latents[edge], row, start, 7, tree.latents[leaf])
    # A prompt without noise has no edges: its images are found among those of all starts.
    ends = [stretch(sampler, policy, x, numbers[2], range(7)) for x in list(policy.seen[0])]
    for latents in tree.latents[tree.row == 2]:
        assert min(float((latents - end).abs().max()) for end in ends) < 1e-5


@each
def test_stochastic_steps_are_scored_as_without_a_sampler(sampler: Sampler) -> None:
    """Mean and log-prob of each stored transition are those of its own one step, to the bit."""
    policy, sde = ToyPolicy(), FlowSDE()
    tree = draw(PLAN, SIZES, policy=policy, sampler=sampler)
    edges, sigmas = tree.transitions, tree.sigmas
    cond = policy.encode([0.1 * row for row in range(10, 14)]).select(edges.row)
    again = sde.step(
        policy(edges.latents, sigmas[edges.step], cond),
        edges.latents,
        sigmas[edges.step],
        sigmas[edges.step + 1],
        PLAN.eta[edges.row, edges.step],
    )
    assert torch.equal(again.mean, edges.mean)
    assert torch.equal(again.log_prob(edges.next_latents), edges.log_prob)


def own(tree: RolloutTree, row: int) -> Tensor:
    return tree.latents[tree.row == row]


@each
def test_a_prompt_does_not_notice_its_neighbors(sampler: Sampler) -> None:
    whole = draw(PLAN, SIZES, index=[3, 8, 13, 18], sampler=sampler)
    plain = draw(PLAN, SIZES, index=[3, 8, 13, 18])
    for row, size in enumerate(SIZES):
        eta, branching = PLAN.eta[row].tolist(), PLAN.branching[row].tolist()
        alone = draw(schedule([eta], [branching]), [size], index=[3 + 5 * row], sampler=sampler)
        assert torch.equal(own(whole, row), alone.latents)
    # A sampler of weights needs two steps in a row: where there are none it is Euler's.
    torch.testing.assert_close(own(whole, 3), own(plain, 3), rtol=0, atol=1e-5)
    assert not torch.allclose(own(whole, 0), own(plain, 0), rtol=0, atol=1e-4)
    assert whole.num_nodes == plain.num_nodes


def test_without_prompts_there_is_nothing_to_remember() -> None:
    empty = schedule([[0.0] * 7])
    none = type(empty)(empty.eta[:0], empty.branching[:0])
    assert len(draw(none, [], sampler=AdamsBashforth())) == 0
