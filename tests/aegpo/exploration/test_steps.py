"""Steps that are the same all the time, or drawn by lot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from chosen_steps import NOISE, assert_too_few_steps, chosen
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.exploration import AllSteps, FixedSteps, NoSteps, RandomSteps, StepSelector


class TestNoSteps:
    def test_no_step_explores_and_it_says_so(self) -> None:
        assert chosen(NoSteps(), 5) == [[], []]
        assert not NoSteps().explores and AllSteps().explores

    def test_refuses_too_few_steps_as_every_selector(self) -> None:
        with pytest.raises(ValueError, match="num_steps=1"):
            NoSteps().validate(1)


class TestFixedSelectors:
    def test_all_steps_but_the_last(self) -> None:
        assert chosen(AllSteps(), 4) == [[0, 1, 2]] * 2

    def test_fixed_steps_carry_level_and_branching(self) -> None:
        schedule = FixedSteps([3, 0], eta=0.4, branching=2)(None, NOISE, torch.arange(1), 6)
        torch.testing.assert_close(schedule.eta, torch.tensor([[0.4, 0, 0, 0.4, 0, 0]]))
        assert schedule.branching.tolist() == [[2, 1, 1, 2, 1, 1]]

    @settings(deadline=None)
    @given(st.integers(2, 12), st.data())
    def test_random_steps(self, num_steps: int, data: st.DataObject) -> None:
        num = data.draw(st.integers(1, num_steps - 1))
        rows = chosen(RandomSteps(num), num_steps, num_prompts=4)
        for row in rows:
            assert len(row) == num and max(row) <= num_steps - 2
        assert rows == chosen(RandomSteps(num), num_steps, num_prompts=4)

    def test_random_steps_belong_to_the_prompt_not_to_its_row(self) -> None:
        index = torch.arange(40)
        eta = RandomSteps(3)(None, NOISE, index, 10).eta
        backwards = RandomSteps(3)(None, NOISE, index.flip(0), 10).eta
        assert torch.equal(backwards.flip(0), eta)
        assert len(eta.unique(dim=0)) > 20
        later = RandomSteps(3)(None, NOISE.at(1), index, 10).eta
        assert (later != eta).any(dim=1).float().mean() > 0.8
        # Every eligible step is drawn about equally often: 40 · 3 / 9 = 13.
        assert (eta > 0).sum(dim=0)[:-1].min() >= 5


@pytest.mark.parametrize(
    ("selector", "num_steps", "message"),
    [
        (RandomSteps(num=5), 5, "num=5 needs at least 6"),
        (FixedSteps([0, 9]), 10, "choose steps from 0 to 8"),
        (AllSteps(), 1, "at least 2 denoising steps"),
    ],
)
def test_validate_names_what_to_change(
    selector: StepSelector, num_steps: int, message: str
) -> None:
    assert_too_few_steps(selector, num_steps, message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AllSteps(eta=0.0), "eta=0.0 must be"),
        (lambda: AllSteps(eta=float("inf")), "finite"),
        (lambda: AllSteps(branching=0), "branching=0"),
        (lambda: FixedSteps([]), "one or more"),
        (lambda: FixedSteps([1, 1]), "different"),
        (lambda: FixedSteps([-1]), "from 0 up"),
        (lambda: RandomSteps(0), "num=0"),
    ],
)
def test_constructors_refuse(build: Callable[[], StepSelector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
