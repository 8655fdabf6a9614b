"""Credit on small trees by hand, and the gradient of a tree against a loop over its paths."""

from __future__ import annotations

import math

import pytest
import torch
from toy_policy import ToyPolicy

from aegpo.advantages import GroupRelative
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives import DepthCredit, LeafCredit
from aegpo.objectives.credit import fuse
from aegpo.objectives.transition_samples import Replay
from aegpo.rollout import RolloutTree, rollout
from aegpo.rollout.tree import Transitions
from aegpo.sde import FlowSDE

NAN = math.nan


def small_tree(log_prob: list[float]) -> RolloutTree:
    """Two edges at step 0; edge 0 has the children 2 and 3, edge 1 has 4 and 5; a leaf on each."""
    latents = torch.zeros(6, 1, 1, 1)
    prompt = torch.zeros(6, dtype=torch.int64)
    step = torch.tensor([0, 0, 1, 1, 1, 1])
    return RolloutTree(
        images=None,
        latents=torch.zeros(4, 1, 1, 1),
        row=torch.zeros(4, dtype=torch.int64),
        transitions=Transitions(latents, latents, latents, step, torch.tensor(log_prob), prompt),
        parent=torch.tensor([-1, -1, 0, 0, 1, 1]),
        leaf_edge=torch.tensor([2, 3, 4, 5]),
        sigmas=torch.tensor([1.0, 0.5, 0.2, 0.0]),
        num_nodes=0,
    )


FLAT = [0.0] * 6
REWARDS = torch.tensor([1.0, 3.0, 4.0, 8.0])
PLAIN = GroupRelative(scale="none", eps=0.0)


def credit_of(credit, tree, rewards, normalize=PLAIN) -> torch.Tensor:
    leaves = normalize(rewards, tree.row).values.masked_fill(rewards.isnan(), NAN)
    return credit(tree, rewards, leaves, normalize)


def test_leaf_credit_is_the_mean_advantage_below() -> None:
    # Centered leaves: -3, -1, 0, 4.
    expected = [-2.0, 2.0, -3.0, -1.0, 0.0, 4.0]
    assert credit_of(LeafCredit(), small_tree(FLAT), REWARDS).tolist() == expected


def test_depth_credit_normalizes_each_depth_by_itself() -> None:
    normalize = GroupRelative(eps=0.0)
    values = credit_of(DepthCredit(), small_tree(FLAT), REWARDS, normalize)
    # Depth 1 holds 2 and 6: ±1/sqrt(2). Depth 2 is centered -3, -1, 0, 4 over sqrt(26 / 3).
    half, std = 1 / math.sqrt(2), math.sqrt(26 / 3)
    expected = [-half, half, -3 / std, -1 / std, 0.0, 4 / std]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_depth_credit_of_chains_is_plain_grpo() -> None:
    tree = small_tree(FLAT)
    chains = RolloutTree(
        **{**vars(tree), "parent": torch.tensor([-1, -1, 0, 1, -1, -1])}
        | {"leaf_edge": torch.tensor([2, 3]), "row": torch.zeros(2, dtype=torch.int64)}
    )
    chains.transitions.row[4:] = 1  # two edges of another prompt, without leaves
    rewards = torch.tensor([1.0, 2.0])
    ours = credit_of(DepthCredit(), chains, rewards, GroupRelative())
    theirs = credit_of(LeafCredit(), chains, rewards, GroupRelative())
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert ours[:4].tolist() == pytest.approx([-0.70701, 0.70701] * 2, abs=1e-5)
    assert ours[4:].isnan().all()


def test_a_missing_reward_counts_for_no_branch() -> None:
    rewards = torch.tensor([NAN, NAN, 4.0, 8.0])
    values = credit_of(DepthCredit(), small_tree(FLAT), rewards)
    assert values.tolist()[4:] == [-2.0, 2.0]
    assert values[[0, 2, 3]].isnan().all()
    assert float(values[1]) == 0.0  # nothing to compare it with


def test_fusion_weighs_leaves_by_the_way_to_them() -> None:
    tree = small_tree([5.0, -5.0, math.log(1.0), math.log(3.0), 0.0, 0.0])
    # Edge 0: (1 · 1 + 3 · 3) / 4; its own log-prob lies above the node and does not count.
    assert fuse(tree, REWARDS, beta=1.0).tolist() == pytest.approx([2.5, 6.0, 1.0, 3.0, 4.0, 8.0])
    # Twice as sharp: (1 · 1 + 9 · 3) / 10.
    assert float(fuse(tree, REWARDS, beta=2.0)[0]) == pytest.approx(2.8)
    assert fuse(tree, REWARDS, beta=0.0).tolist() == [2.0, 6.0, 1.0, 3.0, 4.0, 8.0]
    assert float(fuse(tree, torch.tensor([NAN, 3.0, 4.0, 8.0]), beta=1.0)[0]) == 3.0
    # Log-probs of thousands of nats neither overflow nor vanish.
    far = small_tree([0.0, 0.0, -9000.0, -9001.0, 8000.0, 8000.0])
    weight = 1 / (1 + math.exp(-1))
    assert float(fuse(far, REWARDS, beta=1.0)[0]) == pytest.approx(weight + 3 * (1 - weight))


def test_fusion_sums_log_probs_over_several_levels() -> None:
    """Root edge 0, its children 1 and 2, and 3 below 1: the ways are 1-3 and 2."""
    base = small_tree([0.0, 0.2, 0.5, 0.7, 0.0, 0.0])
    tree = RolloutTree(
        **{**vars(base), "parent": torch.tensor([-1, 0, 0, 1, -1, -1])}
        | {"leaf_edge": torch.tensor([3, 2]), "row": torch.zeros(2, dtype=torch.int64)}
    )
    values = fuse(tree, torch.tensor([1.0, 2.0]), beta=1.0)
    first, second = math.exp(0.2 + 0.7), math.exp(0.5)
    assert float(values[0]) == pytest.approx((first + 2 * second) / (first + second))


def test_refuses_a_beta_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="beta=nan"):
        DepthCredit(NAN)


def test_the_gradient_of_a_tree_is_that_of_its_paths() -> None:
    """Each path carries its own leaf's advantage; an edge that k leaves share is walked k times.

    The reference is written out in float64: the mean of Flow-SDE, the log density, one path after
    another.
    """
    eta = 0.7
    plan = ExplorationSchedule(
        torch.tensor([[eta, eta, 0.0, eta, 0.0]]), torch.tensor([[2, 1, 1, 3, 1]])
    )
    policy, index = ToyPolicy(), torch.tensor([4])
    cond = policy.encode([0.3])
    tree = rollout(policy, FlowSDE(), cond, plan, torch.tensor([12]), KeyedNoise(1), index)
    rewards = torch.linspace(0, 1, 12).square()[torch.randperm(12, generator=generator(0))]
    normalize = GroupRelative()
    leaves = normalize(rewards, tree.row).values
    advantages = LeafCredit()(tree, rewards, leaves, normalize)
    replay = Replay(policy, FlowSDE(), cond, tree, plan, advantages)
    step, _ = replay.terms(torch.arange(len(tree.transitions)))
    log_prob = step.log_prob(tree.transitions.next_latents)
    (ours,) = torch.autograd.grad((advantages * log_prob).sum(), [policy.speed])

    speed = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    sigmas = torch.linspace(1, 0, 6, dtype=torch.float64)
    below = [0] * len(tree.transitions)
    paths = []
    for leaf in range(12):
        edge, path = int(tree.leaf_edge[leaf]), []
        while edge >= 0:
            below[edge] += 1
            path.append(edge)
            edge = int(tree.parent[edge])
        paths.append(path)
    assert sorted(below) == [1] * 12 + [3] * 8 and [len(path) for path in paths] == [3] * 12
    total = torch.zeros((), dtype=torch.float64)
    for leaf, path in enumerate(paths):
        for edge in path:
            x = tree.transitions.latents[edge].double()
            drawn = tree.transitions.next_latents[edge].double()
            number = int(tree.transitions.step[edge])
            sigma, dt = sigmas[number], sigmas[number + 1] - sigmas[number]
            other = sigmas[1] if number == 0 else sigma
            g = eta * torch.sqrt(sigma / (1 - other))
            v = speed * 1.3 * x * sigma - 0.3
            mean = x + v * dt + g**2 / (2 * sigma) * (x + (1 - sigma) * v) * dt
            density = -((drawn - mean) ** 2).mean() / (2 * g**2 * -dt)
            total = total + leaves[leaf].double() * density / below[edge]
    (theirs,) = torch.autograd.grad(total, [speed])
    assert float(theirs) == pytest.approx(float(ours), rel=1e-4)
    assert abs(float(theirs)) > 1e-3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shared_start", [False, True])
def test_a_tree_that_splits_only_at_its_root_is_chains(shared_start: bool) -> None:
    policy, index = ToyPolicy(), torch.tensor([4])
    cond = policy.encode([0.3])
    eta = torch.tensor([[0.7, 0.7, 0.0, 0.0]])
    chains = ExplorationSchedule(eta, torch.ones(1, 4, dtype=torch.int64))
    split = ExplorationSchedule(eta, torch.tensor([[6, 1, 1, 1]]))
    size = torch.tensor([6])

    def grow(plan: ExplorationSchedule, shared: bool) -> RolloutTree:
        return rollout(
            policy, FlowSDE(), cond, plan, size, KeyedNoise(1), index, shared_start=shared
        )

    # One root with six children is six chains that share their starting noise.
    tree, same = grow(split, shared_start), grow(chains, True)
    assert torch.equal(tree.latents, same.latents)
    assert torch.equal(tree.parent, same.parent) and tree.num_nodes == same.num_nodes == 1 + 6 * 3
    rewards = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.4, 0.3])
    for credit in (LeafCredit(), DepthCredit(), DepthCredit(beta=1.0)):
        values = credit_of(credit, tree, rewards, GroupRelative())
        plain = GroupRelative()(rewards, tree.row).values
        torch.testing.assert_close(values, plain.repeat(2))
