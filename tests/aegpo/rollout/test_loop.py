"""The denoising loop on a policy whose velocity is known."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from toy_policy import ToyPolicy, ToySchedule

from aegpo.noise import KeyedNoise
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import CPS, ODE, DanceSDE, FlowSDE


def schedule(eta: list[list[float]], branching: list[list[int]] | None = None) -> ToySchedule:
    levels = torch.tensor(eta)
    splits = torch.ones_like(levels, dtype=torch.int64)
    return ToySchedule(levels, splits if branching is None else torch.tensor(branching))


def draw(
    plan: ToySchedule, sizes: list[int], *, index: list[int] | None = None, policy=None, **options
) -> RolloutTree:
    policy = ToyPolicy() if policy is None else policy
    num_prompts = len(sizes)
    index = list(range(10, 10 + num_prompts)) if index is None else index
    return rollout(
        policy,
        options.pop("sde", FlowSDE()),
        policy.encode([0.1 * row for row in index]),
        plan,
        torch.tensor(sizes),
        options.pop("noise", KeyedNoise(0)),
        torch.tensor(index),
        **options,
    )


# --------------------------------------------------------------------------- counts


def branchgrpo_plan() -> ToySchedule:
    """20 steps, noise on all but the last transition, two children at steps 0, 3, 6 and 9."""
    eta = torch.full((1, 20), 0.3)
    eta[:, -1] = 0
    branching = torch.ones(1, 20, dtype=torch.int64)
    branching[:, [0, 3, 6, 9]] = 2
    return ToySchedule(eta, branching)


def test_branchgrpo_counts():
    policy = ToyPolicy()
    tree = draw(branchgrpo_plan(), [16], policy=policy, sde=DanceSDE())
    # Nodes: 1 at step 0, 2 at steps 1-3, 4 at 4-6, 8 at 7-9, 16 at 10-19.
    assert tree.num_nodes == 1 + 2 * 3 + 4 * 3 + 8 * 3 + 16 * 10 == 203
    assert policy.calls == [1] + [2] * 3 + [4] * 3 + [8] * 3 + [16] * 10
    assert policy.evaluations.counts["other"] == 203
    # BranchGRPO's 218 edges, 2 * 3 + 4 * 3 + 8 * 3 + 16 * 11, include the last transition of every
    # leaf; ours is deterministic and not stored.
    assert len(tree.transitions) == 2 * 3 + 4 * 3 + 8 * 3 + 16 * 11 - 16 == 202
    assert len(tree) == 16
    assert tree.depth.max() == 18


@st.composite
def plans(draw):
    """Schedules with 1-4 prompts and 2-6 steps, and the group sizes that suit them."""
    num_prompts, num_steps = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    eta, branching, sizes = [], [], []
    for _ in range(num_prompts):
        noisy = [draw(st.booleans()) for _ in range(num_steps - 1)] + [False]
        eta.append([0.6 if noise else 0.0 for noise in noisy])
        branching.append([draw(st.integers(1, 3)) if noise else 1 for noise in noisy])
        while math.prod(branching[-1]) > 12:
            branching[-1][branching[-1].index(max(branching[-1]))] = 1
        sizes.append(math.prod(branching[-1]) * draw(st.integers(1, 3)))
    return schedule(eta, branching), sizes


def expected_counts(plan: ToySchedule, sizes: list[int], shared_start: bool) -> tuple[int, int]:
    """Nodes and stochastic edges, one prompt after another."""
    nodes = edges = 0
    for eta, branching, size in zip(plan.eta, plan.branching, sizes, strict=True):
        roots = size // int(branching.prod())
        width, waiting = (1, roots) if shared_start else (roots, 1)
        for level, children in zip(eta.tolist(), branching.tolist(), strict=True):
            nodes += width
            if level > 0:
                width, waiting = width * children * waiting, 1
                edges += width
    return nodes, edges


@settings(max_examples=60, deadline=None)
@given(plan=plans(), shared_start=st.booleans())
def test_evaluations_are_the_nodes_of_the_tree(plan, shared_start):
    plan, sizes = plan
    policy = ToyPolicy()
    tree = draw(plan, sizes, policy=policy, shared_start=shared_start)
    nodes, edges = expected_counts(plan, sizes, shared_start)
    assert tree.num_nodes == policy.evaluations.counts["other"] == sum(policy.calls) == nodes
    assert len(policy.calls) == plan.num_steps  # one call a level
    assert len(tree.transitions) == len(tree.parent) == edges
    assert torch.bincount(tree.row, minlength=len(sizes)).tolist() == sizes
    assert tree.row.tolist() == sorted(tree.row.tolist())
    # No node twice: within a level all latents differ.
    for latents in policy.seen:
        assert len(torch.unique(latents.flatten(1), dim=0)) == len(latents)
    check_wiring(tree, plan)


def check_wiring(tree: RolloutTree, plan: ToySchedule) -> None:
    """Parents and leaves belong to their prompts and to the stochastic steps before them."""
    steps, prompt = tree.transitions.step, tree.transitions.row
    noisy = [row.nonzero().flatten().tolist() for row in plan.eta > 0]
    for edge, above in enumerate(tree.parent.tolist()):
        before = [step for step in noisy[int(prompt[edge])] if step < steps[edge]]
        if above < 0:
            assert before == []
        else:
            assert above < edge
            assert prompt[above] == prompt[edge] and steps[above] == before[-1]
    for leaf, edge in enumerate(tree.leaf_edge.tolist()):
        last = noisy[int(tree.row[leaf])]
        assert (edge < 0) == (last == [])
        if edge >= 0:
            assert prompt[edge] == tree.row[leaf] and steps[edge] == last[-1]


# --------------------------------------------------------------------------- what is stored


def test_stored_transitions_replay_to_the_leaves():
    """From each stored edge the next one follows by the deterministic steps between them."""
    policy = ToyPolicy()
    plan = schedule([[0.7, 0, 0.4, 0, 0]], [[2, 1, 3, 1, 1]])
    tree = draw(plan, [6], policy=policy)
    cond, sigmas = policy.encode([1.0]), policy.sigmas(5)

    def euler(x: Tensor, first: int, last: int) -> Tensor:
        for step in range(first, last):
            v = policy(x, sigmas[step : step + 1], cond).detach()
            x = x + (sigmas[step + 1] - sigmas[step]) * v
        return x

    edges = tree.transitions
    for edge, above in enumerate(tree.parent.tolist()):
        if above >= 0:
            arrived = euler(edges.next_latents[above : above + 1], 1, 2)
            assert torch.equal(arrived[0], edges.latents[edge])
    for leaf, edge in enumerate(tree.leaf_edge.tolist()):
        arrived = euler(edges.next_latents[edge : edge + 1], 3, 5)
        assert torch.equal(arrived[0], tree.latents[leaf])
    assert torch.equal(tree.images, policy.decode(tree.latents))


@pytest.mark.parametrize("sde", [FlowSDE(), DanceSDE(), CPS()])
def test_scoring_a_transition_again_gives_its_log_prob(sde):
    """The update's forward and step on stored rows: mean and log-prob of the rollout, exactly."""
    policy = ToyPolicy()
    plan = schedule([[0.7, 0.7, 0, 0.2, 0], [0, 0.5, 0.5, 0.5, 0]])
    tree = draw(plan, [3, 5], policy=policy, sde=sde)
    edges, sigmas = tree.transitions, tree.sigmas
    cond = policy.encode([1.0, 1.1]).select(edges.row)
    prediction = policy(edges.latents, sigmas[edges.step], cond)
    again = sde.step(
        prediction,
        edges.latents,
        sigmas[edges.step],
        sigmas[edges.step + 1],
        plan.eta[edges.row, edges.step],
    )
    assert torch.equal(again.mean, edges.mean)
    assert torch.equal(again.log_prob(edges.next_latents), edges.log_prob)
    again.log_prob(edges.next_latents).sum().backward()
    assert policy.speed.grad is not None and policy.speed.grad != 0


def test_noise_is_keyed_by_prompt_child_and_step():
    noise = KeyedNoise(9, 4)
    tree = draw(schedule([[0, 0.5, 0]]), [2], index=[33], noise=noise)
    edges = tree.transitions
    std = 0.5 * math.sqrt((2 / 3) / (1 / 3)) * math.sqrt(1 / 3)
    drawn = (edges.next_latents - edges.mean) / std
    keys = torch.tensor([[33, 0, 1], [33, 1, 1]])
    torch.testing.assert_close(drawn, noise.normal("step", keys, (1, 2, 2)), atol=2e-6, rtol=0)
    policy = ToyPolicy()
    draw(schedule([[0, 0.5, 0]]), [2], index=[33], noise=noise, policy=policy)
    starts = noise.normal("start", torch.tensor([[33, 0, 0], [33, 1, 0]]), (1, 2, 2))
    assert torch.equal(policy.seen[0], starts)


@pytest.mark.parametrize("shared_start", [False, True])
def test_no_two_edges_share_their_noise(shared_start):
    plan = schedule([[0.7, 0.7, 0.7, 0]] * 2, [[3, 2, 2, 1], [2, 1, 3, 1]])
    tree = draw(plan, [24, 12], shared_start=shared_start)
    edges, sigmas = tree.transitions, tree.sigmas
    eta = torch.full((len(edges),), 0.7)
    std = FlowSDE().coefficients(sigmas[edges.step], sigmas[edges.step + 1], eta).std
    drawn = (edges.next_latents - edges.mean).flatten(1) / std[:, None]
    distances = torch.cdist(drawn, drawn) + 9 * torch.eye(len(edges))
    assert distances.min() > 1e-3  # equal draws would agree to 1e-6


def test_nothing_requires_gradients_and_latents_are_fp32():
    tree = draw(schedule([[0.7, 0]]), [2])
    for value in (tree.images, tree.latents, tree.transitions.mean, tree.transitions.log_prob):
        assert not value.requires_grad
        assert value.dtype == torch.float32


# --------------------------------------------------------------------------- independence


@settings(max_examples=40, deadline=None)
@given(plan=plans(), shared_start=st.booleans(), data=st.data())
def test_a_prompt_does_not_notice_its_neighbors(plan, shared_start, data):
    plan, sizes = plan
    order = data.draw(st.permutations(range(len(sizes))))
    keep = order[: data.draw(st.integers(1, len(sizes)))]
    index = [5 * row + 3 for row in range(len(sizes))]
    whole = draw(plan, sizes, index=index, shared_start=shared_start)
    part = draw(
        ToySchedule(plan.eta[keep], plan.branching[keep]),
        [sizes[row] for row in keep],
        index=[index[row] for row in keep],
        shared_start=shared_start,
    )
    for new, old in enumerate(keep):
        assert torch.equal(part.latents[part.row == new], whole.latents[whole.row == old])
        new_edges = part.transitions.select(part.transitions.row == new)
        old_edges = whole.transitions.select(whole.transitions.row == old)
        for name in ("latents", "next_latents", "mean", "step", "log_prob"):
            assert torch.equal(getattr(new_edges, name), getattr(old_edges, name))


@pytest.mark.parametrize("shared_start", [False, True])
def test_a_bigger_group_begins_with_the_smaller_one(shared_start):
    plan = schedule([[0.7, 0.7, 0]])
    small = draw(plan, [8], shared_start=shared_start)
    large = draw(plan, [16], shared_start=shared_start)
    assert torch.equal(large.latents[:8], small.latents)


def test_iterations_and_seeds_differ_and_repeats_agree():
    plan = schedule([[0.7, 0]])
    one = draw(plan, [2], noise=KeyedNoise(0, 1)).latents
    assert torch.equal(one, draw(plan, [2], noise=KeyedNoise(0, 1)).latents)
    assert not torch.equal(one, draw(plan, [2], noise=KeyedNoise(0, 2)).latents)
    assert not torch.equal(one, draw(plan, [2], noise=KeyedNoise(1, 1)).latents)


# --------------------------------------------------------------------------- shared start


def test_a_shared_prefix_is_evaluated_once():
    policy = ToyPolicy()
    plan = schedule([[0, 0, 0.7, 0, 0], [0.7, 0, 0, 0.7, 0]])
    tree = draw(plan, [4, 3], policy=policy, shared_start=True)
    # Prompt 0 is one node at steps 0-2 and four after; prompt 1 is one node at step 0, then three.
    assert policy.calls == [1 + 1, 1 + 3, 1 + 3, 4 + 3, 4 + 3]
    edges = tree.transitions
    first = (edges.row == 0) & (edges.step == 2)
    assert len(torch.unique(edges.latents[first].flatten(1), dim=0)) == 1
    assert len(torch.unique(edges.next_latents[first].flatten(1), dim=0)) == 4
    assert tree.parent[first].tolist() == [-1] * 4


def test_shared_roots_part_together_with_the_first_branching():
    """12 images of 2 x 2 leaves a root are 3 roots; all 3 x 2 children part at step 1."""
    policy = ToyPolicy()
    plan = schedule([[0, 0.7, 0.7, 0]], [[1, 2, 2, 1]])
    tree = draw(plan, [12], policy=policy, shared_start=True)
    assert policy.calls == [1, 1, 6, 12]
    assert tree.backup(torch.arange(12.0))[:6].tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]


def test_a_shared_start_without_noise_gives_equal_images():
    policy = ToyPolicy()
    tree = draw(schedule([[0.0] * 3, [0.5, 0, 0]]), [3, 2], policy=policy, shared_start=True)
    assert policy.calls == [2, 3, 3]
    assert tree.row.tolist() == [0, 0, 0, 1, 1]
    assert tree.leaf_edge.tolist() == [-1, -1, -1, 0, 1]
    assert torch.equal(tree.latents[0], tree.latents[2]) and tree.images.shape[0] == 5
    assert not torch.equal(tree.latents[3], tree.latents[4])


# --------------------------------------------------------------------------- options, errors


def test_a_deterministic_rollout_is_the_euler_method():
    policy = ToyPolicy()
    tree = draw(schedule([[0.0] * 8]), [2], policy=policy, sde=ODE(), decode=False)
    x, cond = policy.seen[0], policy.encode([1.0, 1.0])
    for sigma, sigma_next in zip(tree.sigmas[:-1], tree.sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * policy(x, sigma.expand(2), cond).detach()
    assert torch.equal(tree.latents, x)
    assert tree.images is None
    assert len(tree.transitions) == 0 and tree.transitions.latents.shape == (0, 1, 2, 2)
    assert tree.leaf_edge.tolist() == [-1, -1]


def test_the_observer_hears_of_every_level():
    class Observer:
        def __init__(self) -> None:
            self.heard: list[tuple[int, list[int], int, int]] = []

        def begin(self, step: int, prompt: Tensor, layout: int) -> None:
            self.heard.append((step, prompt.tolist(), layout, len(policy.calls)))

    policy, observer = ToyPolicy(), Observer()
    plan = schedule([[0.7, 0], [0, 0]])
    draw(plan, [2, 2], policy=policy, shared_start=True, observer=observer)
    # (step, prompt of each node, layout rows, calls made before)
    assert observer.heard == [(0, [0, 1], 2, 0), (1, [0, 0, 1], 3, 1)]


def test_evaluations_go_to_the_callers_purpose():
    policy = ToyPolicy()
    with policy.evaluations.charge("probe"):
        draw(schedule([[0.0] * 3]), [2], policy=policy)
    assert policy.evaluations.counts["probe"] == 6 and policy.evaluations.counts["other"] == 0


@pytest.mark.parametrize("size", [6, 0, 2])
def test_group_size_must_fit_the_branching(size):
    plan = schedule([[0.7, 0.7, 0]], [[2, 2, 1]])
    with pytest.raises(ValueError, match=f"have {size} images.*4 leaves.*multiple of 4"):
        draw(plan, [size])


def test_rows_must_agree():
    plan = schedule([[0.7, 0], [0.7, 0]])
    with pytest.raises(ValueError, match=r"3 rows.*schedule has shape \(2,\)"):
        draw(plan, [2, 2, 2])
    with pytest.raises(ValueError, match="in the batch twice"):
        draw(plan, [2, 2], index=[4, 4])


def test_a_rank_without_prompts_draws_nothing_of_the_right_shape():
    nothing = draw(ToySchedule(torch.zeros(0, 2), torch.ones(0, 2, dtype=torch.int64)), [])
    one = draw(schedule([[0.7, 0]]), [2])
    assert len(nothing) == len(nothing.transitions) == nothing.num_nodes == 0
    assert nothing.images.shape[1:] == one.images.shape[1:]
    assert nothing.transitions.latents.shape[1:] == one.transitions.latents.shape[1:]


def test_noise_levels_are_checked_before_the_policy_runs():
    policy = ToyPolicy()
    with pytest.raises(ValueError, match="CPS accepts eta from 0 to 1"):
        draw(schedule([[0, 1.5, 0]]), [2], policy=policy, sde=CPS())
    assert policy.calls == []


def test_real_schedules_are_accepted():
    exploration = pytest.importorskip("aegpo.exploration")
    plan = exploration.ExplorationSchedule(
        eta=torch.tensor([[0.7, 0.0, 0.0]]), branching=torch.ones(1, 3, dtype=torch.int64)
    )
    assert len(draw(plan, [3]).transitions) == 3
