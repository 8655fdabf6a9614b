"""Pruning by hand: what is cut, what stays, and BranchGRPO's counts."""

from __future__ import annotations

import pytest
import torch
from toy_policy import ToyPolicy, ToySchedule

from aegpo.exploration import AllSteps, ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives import DepthPruning, RandomStepPruning, WidthPruning
from aegpo.objectives.transition_samples import Replay
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import DanceSDE

NOISE = KeyedNoise(5)


def grow(plan, sizes: list[int]) -> RolloutTree:
    policy, index = ToyPolicy(), torch.arange(len(sizes))
    cond = policy.encode([0.1 * row for row in range(len(sizes))])
    return rollout(policy, DanceSDE(), cond, plan, torch.tensor(sizes), NOISE, index)


def prune(pruning, plan, tree: RolloutTree, leaves: torch.Tensor, noise=NOISE) -> torch.Tensor:
    index = torch.arange(len(plan.eta)) + 30
    return pruning(tree, plan, tree.backup(leaves), noise, index)


def branchgrpo() -> tuple[ExplorationSchedule, RolloutTree]:
    """BranchGRPO's own tree, noise on the last of 20 steps included: 218 edges."""
    eta = torch.full((1, 20), 0.3)
    branching = torch.ones(1, 20, dtype=torch.int64)
    branching[:, [0, 3, 6, 9]] = 2
    tree = grow(ToySchedule(eta, branching), [16])
    assert len(tree.transitions) == 218
    eta[:, -1] = 0
    return ExplorationSchedule(eta, branching), tree


@pytest.mark.parametrize("mode", ["parent_top", "extremes"])
def test_width_pruning_leaves_branchgrpos_138_edges(mode) -> None:
    plan, tree = branchgrpo()
    leaves = torch.arange(16.0)[torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    kept = prune(WidthPruning(mode), plan, tree, leaves)
    assert int(kept.sum()) == 218 - 80 == 138
    assert kept[tree.transitions.step <= 9].all()
    below = [kept[tree.transitions.step == step].tolist() for step in range(10, 20)]
    assert all(row == below[0] for row in below)  # whole branches, not single transitions
    worth = tree.backup(leaves)[kept & (tree.transitions.step == 10)]
    if mode == "extremes":
        assert sorted(worth.tolist()) == [0, 1, 2, 3, 12, 13, 14, 15]
    else:
        assert sorted(worth.tolist()) == sorted(leaves.reshape(8, 2).amax(1).tolist())


def test_depth_pruning_leaves_branchgrpos_138_edges() -> None:
    plan, tree = branchgrpo()
    leaves = torch.arange(16.0)
    kept = prune(DepthPruning(start=14, width=5), plan, tree, leaves)
    assert int(kept.sum()) == 218 - 5 * 16 == 138
    assert sorted(tree.transitions.step[~kept].unique().tolist()) == [14, 15, 16, 17, 18]


def test_the_pruned_window_moves_towards_noise_and_stops() -> None:
    plan = ExplorationSchedule.from_mask(torch.tensor([[True] * 7 + [False]]), 0.3)
    tree = grow(plan, [2])
    pruning = DepthPruning(start=5, width=2, interval=3, stop=4)
    for iteration, steps in {0: [5, 6], 2: [5, 6], 3: [4, 5], 90: [4, 5]}.items():
        kept = prune(pruning, plan, tree, torch.zeros(2), NOISE.at(iteration))
        assert sorted(tree.transitions.step[~kept].unique().tolist()) == steps
    pruning.validate(8)
    with pytest.raises(ValueError, match="reach beyond step 5"):
        pruning.validate(7)


def test_prompts_are_pruned_each_at_its_own_last_split() -> None:
    """Chains, a split at step 0, and splits at steps 0 and 1 of three stochastic ones."""
    plan = ExplorationSchedule(
        torch.tensor([[0.3, 0.3, 0.3, 0.0]] * 3),
        torch.tensor([[1, 1, 1, 1], [4, 1, 1, 1], [2, 2, 1, 1]]),
    )
    tree = grow(plan, [2, 4, 8])
    leaves = torch.tensor([9.0, 8.0, 4.0, 3.0, 1.0, 2.0, 1.0, 2.0, 4.0, 3.0, 6.0, 6.0, 7.0, 8.0])
    kept = prune(WidthPruning(), plan, tree, leaves)

    def worth(prompt: int, step: int) -> list[float]:
        rows = (tree.transitions.row == prompt) & (tree.transitions.step == step)
        return tree.backup(leaves)[rows & kept].tolist()

    assert [worth(0, step) for step in range(3)] == [[9.0, 8.0]] * 3
    assert worth(1, 0) == [4.0, 3.0, 1.0, 2.0]
    assert worth(1, 1) == worth(1, 2) == [4.0, 3.0]
    assert worth(2, 1) == [1.0, 2.0, 4.0, 3.0, 6.0, 6.0, 7.0, 8.0]
    assert worth(2, 2) == [2.0, 4.0, 6.0, 8.0]  # one of each pair, the first of equals
    best_and_worst = prune(WidthPruning("extremes"), plan, tree, leaves)
    tail = (tree.transitions.row == 2) & (tree.transitions.step == 2)
    assert tree.backup(leaves)[tail & best_and_worst].tolist() == [1.0, 2.0, 7.0, 8.0]


def test_random_steps_are_drawn_per_prompt_and_iteration() -> None:
    plan = AllSteps(eta=0.3)(None, NOISE, torch.arange(2), 11)
    tree = grow(plan, [3, 3])
    seen = set()
    for iteration in range(6):
        kept = prune(RandomStepPruning(0.6), plan, tree, torch.zeros(6), NOISE.at(iteration))
        for prompt in range(2):
            own = tree.transitions.row == prompt
            steps = tree.transitions.step[kept & own]
            assert len(steps) == 6 * 3 and len(steps.unique()) == 6  # 0.6 of 10, whole groups
            seen.add(tuple(steps.unique().tolist()))
    assert len(seen) > 6


def test_a_pruned_transition_is_in_no_update() -> None:
    plan, tree = branchgrpo()
    policy = ToyPolicy()
    advantages = tree.backup(torch.arange(16.0))
    kept = prune(WidthPruning(), plan, tree, torch.arange(16.0))
    replay = Replay(policy, DanceSDE(), policy.encode([0.0]), tree, plan_like(plan), advantages)
    assert len(torch.cat(replay.split(torch.tensor([30]), 3, NOISE))) == 218
    replay.kept = kept
    rows = torch.cat(replay.split(torch.tensor([30]), 3, NOISE))
    assert sorted(rows.tolist()) == kept.nonzero().flatten().tolist()


def plan_like(plan: ExplorationSchedule) -> ToySchedule:
    """The same plan with noise at the last step, which this tree has."""
    return ToySchedule(torch.full_like(plan.eta, 0.3), plan.branching)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WidthPruning("widest"), "mode='widest' is unknown"),
        (lambda: WidthPruning(keep=0.0), "keep=0.0"),
        (lambda: RandomStepPruning(1.5), "keep=1.5"),
        (lambda: DepthPruning(3, width=0), "width=0"),
        (lambda: DepthPruning(3, stop=4), "stop=4 must lie between 0 and start=3"),
    ],
)
def test_constructors_refuse(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
