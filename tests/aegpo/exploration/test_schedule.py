"""Schedules: masks become levels and children, and splits fit into a group."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from chosen_steps import NOISE, sizes, splits
from hypothesis import given, settings
from toy_policy import ToyPolicy

from aegpo.exploration import ExplorationSchedule, FixedSteps
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE


class TestSchedule:
    def test_mask_becomes_levels_and_children(self) -> None:
        mask = torch.tensor([[True, False, True, False], [False, False, False, False]])
        schedule = ExplorationSchedule.from_mask(mask, 0.5, branching=3)
        assert schedule.eta.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 0]]
        assert schedule.branching.tolist() == [[3, 1, 3, 1], [1, 1, 1, 1]]
        assert schedule.leaves_per_root.tolist() == [9, 1]
        assert schedule.select(torch.tensor([1])).eta.tolist() == [[0, 0, 0, 0]]

    def test_deterministic_has_no_noise(self) -> None:
        schedule = ExplorationSchedule.deterministic(2, 3)
        assert schedule.eta.tolist() == [[0.0] * 3] * 2
        assert schedule.leaves_per_root.tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("eta", "branching", "message"),
        [
            ([[0.7, 0.7]], [[1, 1]], "must be deterministic"),
            ([[0.0, 0.0]], [[2, 1]], "branching > 1 needs eta > 0"),
            ([[-0.1, 0.0]], [[1, 1]], "at least 0"),
            ([[float("nan"), 0.0]], [[1, 1]], "finite"),
            ([[0.1, 0.0]], [[0, 1]], "at least 1"),
            ([[0.1, 0.0]], [[1, 1, 1]], "shape"),
        ],
    )
    def test_refuses(self, eta: list, branching: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ExplorationSchedule(torch.tensor(eta), torch.tensor(branching))

    def test_refuses_other_types(self) -> None:
        with pytest.raises(ValueError, match="float32"):
            ExplorationSchedule(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2).long())


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
