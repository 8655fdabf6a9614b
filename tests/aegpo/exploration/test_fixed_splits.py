"""Trees by selectors: what splits where, and how a schedule fits a group."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from toy_policy import ToyPolicy

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import (
    EntropyPeaks,
    ExplorationSchedule,
    FixedSplits,
    FixedSteps,
    NoiseEntropy,
    RandomWindow,
)
from aegpo.noise import KeyedNoise
from aegpo.rollout import rollout
from aegpo.sde import CPS, DanceSDE, FlowSDE

NOISE = KeyedNoise(3)


def splits(schedule: ExplorationSchedule) -> list[list[int]]:
    return [row.gt(1).nonzero().flatten().tolist() for row in schedule.branching]


def sizes(*values: int) -> torch.Tensor:
    return torch.tensor(values)


class TestFit:
    def plan(self, priority: torch.Tensor | None = None) -> ExplorationSchedule:
        mask = torch.tensor([[True, True, False, True, True, False]]).expand(4, 6)
        plan = ExplorationSchedule.from_mask(mask, 0.7, branching=2)
        return ExplorationSchedule(plan.eta, plan.branching, priority)

    def test_the_earliest_splits_stay_without_a_priority(self) -> None:
        fitted = self.plan().fit(sizes(16, 8, 12, 7))
        assert splits(fitted) == [[0, 1, 3, 4], [0, 1, 3], [0, 1], []]
        assert fitted.leaves_per_root.tolist() == [16, 8, 4, 1]
        assert torch.equal(fitted.eta, self.plan().eta)  # noise stays where a split went

    def test_the_highest_priority_stays(self) -> None:
        priority = torch.tensor([[1.0, 4.0, 9.0, 3.0, 2.0, 9.0]]).expand(4, 6)
        assert splits(self.plan(priority).fit(sizes(16, 8, 12, 2))) == [
            [0, 1, 3, 4],
            [1, 3, 4],
            [1, 3],
            [1],
        ]

    def test_a_factor_that_does_not_divide_is_passed_over(self) -> None:
        plan = ExplorationSchedule(
            torch.tensor([[0.7, 0.7, 0.7, 0.0]]), torch.tensor([[3, 2, 2, 1]])
        )
        assert splits(plan.fit(sizes(8))) == [[1, 2]]
        assert splits(plan.fit(sizes(12))) == [[0, 1, 2]]

    def test_chains_are_left_alone(self) -> None:
        chains = FixedSteps([0, 2])(None, NOISE, torch.arange(2), 5)
        assert chains.fit(sizes(7, 9)) is chains

    def test_rows_are_selected_with_their_priority(self) -> None:
        priority = torch.arange(24.0).reshape(4, 6)
        picked = self.plan(priority).select(torch.tensor([2]))
        assert picked.priority is not None and picked.priority.tolist() == [
            [12.0, 13.0, 14.0, 15.0, 16.0, 17.0]
        ]

    def test_refuses_other_prompts(self) -> None:
        with pytest.raises(ValueError, match="has 4 prompts"):
            self.plan().fit(sizes(8, 8))
        with pytest.raises(ValueError, match="priority must have the shape"):
            self.plan(torch.zeros(1, 6))

    @settings(max_examples=60, deadline=None)
    @given(
        factors=st.lists(st.integers(1, 4), min_size=1, max_size=5),
        size=st.integers(2, 36),
        data=st.data(),
    )
    def test_a_rollout_takes_what_fits(self, factors: list, size: int, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(len(factors) + 1)))
        plan = ExplorationSchedule(
            torch.tensor([[0.7] * len(factors) + [0.0]]),
            torch.tensor([[*factors, 1]]),
            torch.tensor([order]),
        ).fit(sizes(size))
        assert size % int(plan.leaves_per_root) == 0
        for step, factor in enumerate(factors):  # nothing that was dropped would still fit
            if plan.branching[0, step] != factor:
                assert size % (int(plan.leaves_per_root) * factor) != 0
        policy = ToyPolicy()
        tree = rollout(
            policy, FlowSDE(), policy.encode([0.1]), plan, sizes(size), NOISE, torch.tensor([5])
        )
        assert len(tree) == size


class TestFixedSplits:
    def test_noise_everywhere_or_only_where_asked(self) -> None:
        index = torch.arange(1)
        everywhere = FixedSplits([0, 2], eta=0.5)(None, NOISE, index, 5)
        assert everywhere.eta.tolist() == [[0.5, 0.5, 0.5, 0.5, 0.0]]
        assert everywhere.branching.tolist() == [[2, 1, 2, 1, 1]]
        hybrid = FixedSplits([2, 0], factors=[3, 2], explore=[1], eta=0.5)(None, NOISE, index, 5)
        assert hybrid.eta.tolist() == [[0.5, 0.5, 0.5, 0.0, 0.0]]
        assert hybrid.branching.tolist() == [[2, 1, 3, 1, 1]]
        only = FixedSplits([2], explore=[], eta=0.5)(None, NOISE, index, 5)
        assert only.eta.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.0]]

    @pytest.mark.parametrize(
        ("explore", "edges", "nodes"),
        # Noise at steps 0-18 (the last one never explores): 218 - 16 edges. BranchGRPO-Mix with
        # its window on steps 0-3: 2 + 2 + 2 + 4 + 8 + 16 edges on the same nodes.
        [(None, 218 - 16, 203), ([0, 1, 2, 3], 34, 203), ([], 2 + 4 + 8 + 16, 203)],
    )
    def test_branchgrpo_counts(self, explore: list | None, edges: int, nodes: int) -> None:
        plan = FixedSplits([0, 3, 6, 9], explore=explore, eta=0.3)(
            None, NOISE, torch.tensor([7]), 20
        ).fit(sizes(16))
        policy = ToyPolicy()
        tree = rollout(
            policy, DanceSDE(), policy.encode([0.1]), plan, sizes(16), NOISE, torch.tensor([7])
        )
        assert (len(tree.transitions), tree.num_nodes) == (edges, nodes)

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: FixedSplits([]), "one or more different"),
            (lambda: FixedSplits([1, 1]), "one or more different"),
            (lambda: FixedSplits([0, 1], factors=[2]), "one factor of at least 2 each"),
            (lambda: FixedSplits([0], branching=1), "one factor of at least 2 each"),
            (lambda: FixedSplits([0], explore=[-1]), "from 0 up"),
            (lambda: FixedSplits([4]).validate(5), "splits=.* reaches beyond step 3"),
            (lambda: FixedSplits([0], explore=[4]).validate(5), "explore=.* reaches beyond step 3"),
            (lambda: RandomWindow(3, end=2), "does not fit before end=2"),
            (lambda: RandomWindow(2, end=5).validate(5), "end=5 needs at least 6"),
            (lambda: NoiseEntropy(top_k=0), "at least 1"),
            (lambda: NoiseEntropy(shift=0.0), "shift=0.0"),
            (lambda: NoiseEntropy(sde=CPS(), eta=2.0).validate(9), "CPS accepts eta"),
        ],
    )
    def test_refuses(self, build, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build()


class TestEntropyTree:
    CURVE = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0, 9.0]])

    def test_sixteen_images_split_at_all_peaks_and_eight_at_the_highest(self) -> None:
        plan = EntropyPeaks(top_k=4, branching=2)(
            EntropyReading(self.CURVE), NOISE, torch.arange(2), 6
        )
        assert splits(plan.fit(sizes(16, 8))) == [[0, 2, 3, 4], [2, 3, 4]]
        assert splits(plan.fit(sizes(8, 16))) == [[0, 2, 4], [1, 2, 3, 4]]
        assert splits(plan.fit(sizes(12, 2))) == [[0, 2], [4]]

    def test_before_the_first_reading_the_earliest_split(self) -> None:
        plan = EntropyPeaks(top_k=4, branching=2)(None, NOISE, torch.arange(1), 6)
        assert splits(plan.fit(sizes(8))) == [[0, 1, 2]]

    def test_local_maxima_come_before_higher_slopes(self) -> None:
        curve = torch.tensor([[1.0, 9.0, 8.0, 7.0, 2.0, 3.0, 1.0, 0.0]])  # maxima at 1 and 5
        plan = EntropyPeaks(top_k=3, mode="local_maxima", branching=2)(
            EntropyReading(curve), NOISE, torch.arange(1), 8
        )
        assert splits(plan) == [[1, 2, 5]]
        assert splits(plan.fit(sizes(4))) == [[1, 5]]


def test_the_noise_of_early_steps_has_the_highest_entropy() -> None:
    # sqrt(2 pi e) std by hand at T = 16, shift 3, a = 0.7; at step 0 std is exactly 0.7.
    selector = NoiseEntropy(top_k=3, eta=0.7, shift=3.0)
    expected = torch.tensor([4.1327 * 0.7, 2.99, 2.14, 1.76, 1.54, 1.39]).log()
    torch.testing.assert_close(selector.curve(16)[:6], expected, atol=4e-3, rtol=0)
    plan = selector(None, NOISE, torch.arange(2), 16)
    assert plan.stochastic.nonzero()[:, 1].tolist() == [0, 1, 2] * 2
    tree = NoiseEntropy(top_k=3, eta=0.7, shift=3.0, branching=2)(None, NOISE, torch.arange(1), 16)
    assert splits(tree.fit(sizes(2))) == [[1]]  # 2.99 is the highest
    # Constant noise on equal steps: all alike, so the earliest.
    flat = NoiseEntropy(top_k=2, eta=0.3, sde=DanceSDE()).curve(4)
    expected = torch.full((4,), 0.5 * math.log(2 * math.pi * math.e * 0.3**2 * 0.25))
    torch.testing.assert_close(flat, expected)


def test_random_windows_stay_in_their_range_and_reach_all_of_it() -> None:
    selector = RandomWindow(width=2, end=5)
    starts = set()
    for iteration in range(40):
        plan = selector(None, NOISE.at(iteration), torch.tensor([3, 4]), 10)
        for row in plan.stochastic:
            steps = row.nonzero().flatten().tolist()
            assert steps == [steps[0], steps[0] + 1]
            starts.add(steps[0])
    assert starts == {0, 1, 2, 3}
    again = selector(None, NOISE.at(1), torch.tensor([4]), 10)
    assert torch.equal(again.eta[0], selector(None, NOISE.at(1), torch.tensor([3, 4]), 10).eta[1])
