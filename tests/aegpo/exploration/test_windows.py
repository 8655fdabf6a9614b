"""Windows of neighboring steps: one that slides, and one at random."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from chosen_steps import NOISE, assert_too_few_steps, chosen
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.exploration import RandomWindow, SlidingWindow, StepSelector


class TestSlidingWindow:
    def test_window_slides_clamps_and_wraps(self) -> None:
        # T = 8 has eligible steps 0..6; starts 0, 2, 4 -> 3 (moved back to fit), then 0 again.
        window = SlidingWindow(width=4, iterations_per_position=2, stride=2)
        starts = [window.start(iteration, 8) for iteration in range(7)]
        assert starts == [0, 0, 2, 2, 3, 3, 0]
        assert chosen(window, 8, noise=NOISE.at(5)) == [[3, 4, 5, 6]] * 2

    def test_window_without_stride_stays_and_fixed_noise_is_the_first_position(self) -> None:
        assert SlidingWindow(2, 1, stride=0).start(100, 8) == 0
        assert chosen(SlidingWindow(2, 1), 8, noise=NOISE.at(3).fixed()) == [[0, 1]] * 2

    @settings(deadline=None)
    @given(st.integers(2, 12), st.integers(0, 4), st.data())
    def test_window_is_always_whole_and_covers_everything(
        self, num_steps: int, stride: int, data: st.DataObject
    ) -> None:
        width = data.draw(st.integers(1, num_steps - 1))
        window = SlidingWindow(width, 1, stride)
        seen: set[int] = set()
        for iteration in range(num_steps):
            start = window.start(iteration, num_steps)
            assert start >= 0 and start + width <= num_steps - 1
            seen |= set(range(start, start + width))
        if 0 < stride <= width:
            assert seen == set(range(num_steps - 1))


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


@pytest.mark.parametrize(
    ("selector", "num_steps", "message"),
    [
        (SlidingWindow(width=4), 4, "width=4 needs at least 5"),
    ],
)
def test_validate_names_what_to_change(
    selector: StepSelector, num_steps: int, message: str
) -> None:
    assert_too_few_steps(selector, num_steps, message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SlidingWindow(width=0), "width=0"),
        (lambda: SlidingWindow(iterations_per_position=0), "iterations_per_position=0"),
        (lambda: SlidingWindow(stride=-1), "stride=-1"),
        (lambda: RandomWindow(3, end=2), "does not fit before end=2"),
        (lambda: RandomWindow(2, end=5).validate(5), "end=5 needs at least 6"),
    ],
)
def test_constructors_refuse(build: Callable[[], StepSelector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
