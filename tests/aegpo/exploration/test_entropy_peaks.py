"""Steps at the peaks of the entropy curve, in chains and in trees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from chosen_steps import NOISE, assert_too_few_steps, chosen, sizes, splits
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import EntropyPeaks, StepSelector


@st.composite
def curves(draw: st.DrawFn) -> list[list[float]]:
    num_steps = draw(st.integers(5, 12))
    value = st.integers(0, 6).map(float)  # few values, so that ties are common
    row = st.lists(value, min_size=num_steps, max_size=num_steps)
    return draw(st.lists(row, min_size=1, max_size=5))


class TestEntropyPeaks:
    def test_takes_the_highest_steps_and_never_the_last(self) -> None:
        curve = [[0.1, 0.9, 0.2, 0.8, 0.3, 1.0], [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]]
        assert chosen(EntropyPeaks(top_k=3), 6, curve) == [[1, 3, 4], [0, 1, 2]]

    def test_without_a_reading_the_first_steps(self) -> None:
        assert chosen(EntropyPeaks(top_k=3), 6) == [[0, 1, 2]] * 2
        assert chosen(EntropyPeaks(top_k=3, threshold=0.5), 6) == [[0, 1, 2]] * 2

    def test_ties_go_to_the_earlier_step(self) -> None:
        assert chosen(EntropyPeaks(top_k=2), 5, [[0.3] * 5, [0.1, 0.2, 0.2, 0.2, 0]]) == [
            [0, 1],
            [1, 2],
        ]

    def test_local_maxima_come_first_then_the_highest_rest(self) -> None:
        # Maxima at 1 (.9) and 4 (.5); step 2 (.8) is higher than 4 but no maximum.
        curve = [[0.1, 0.9, 0.8, 0.4, 0.5, 0.3, 1.0]]
        assert chosen(EntropyPeaks(top_k=2, mode="local_maxima"), 7, curve) == [[1, 4]]
        assert chosen(EntropyPeaks(top_k=3, mode="local_maxima"), 7, curve) == [[1, 2, 4]]
        assert chosen(EntropyPeaks(top_k=2), 7, curve) == [[1, 2]]

    def test_a_plateau_is_one_maximum_and_ends_count(self) -> None:
        curve = [[0.6, 0.2, 0.5, 0.5, 0.1, 0.4, 0.0]]
        assert chosen(EntropyPeaks(top_k=3, mode="local_maxima"), 7, curve) == [[0, 2, 5]]

    def test_threshold_on_the_scaled_curve(self) -> None:
        # Scaled over steps 0..4: 0, .5, 1, .25, .75; the last value would change it to 0...
        curve = [[1.0, 2.0, 3.0, 1.5, 2.5, 100.0], [4.0] * 6]
        steps = chosen(EntropyPeaks(top_k=2, threshold=0.4), 6, curve)
        assert steps == [[1, 2, 4], [0, 1]]
        assert chosen(EntropyPeaks(threshold=0.0), 6, curve[:1]) == [[1, 2, 3, 4]]

    def test_scope_batch_follows_the_mean_curve(self) -> None:
        curve = [[0.0, 1.0, 0.2, 0.0], [0.0, 0.0, 0.9, 0.0]]  # mean 0, .5, .55
        assert chosen(EntropyPeaks(top_k=1, scope="batch"), 4, curve) == [[2], [2]]
        assert chosen(EntropyPeaks(top_k=1), 4, curve) == [[1], [2]]

    @settings(deadline=None)
    @given(curves(), st.integers(1, 4), st.sampled_from(["top_k", "local_maxima"]))
    def test_k_per_row_and_never_last(
        self, curve: list[list[float]], top_k: int, mode: str
    ) -> None:
        num_steps = len(curve[0])
        for row in chosen(EntropyPeaks(top_k=top_k, mode=mode), num_steps, curve):
            assert len(row) == top_k and num_steps - 1 not in row

    @settings(deadline=None)
    @given(curves(), st.integers(1, 4))
    def test_top_k_picks_the_largest(self, curve: list[list[float]], top_k: int) -> None:
        for row, picked in zip(
            curve, chosen(EntropyPeaks(top_k=top_k), len(curve[0]), curve), strict=True
        ):
            rest = [value for step, value in enumerate(row[:-1]) if step not in picked]
            assert min(row[step] for step in picked) >= max(rest, default=0.0)

    @settings(deadline=None)
    @given(curves(), st.floats(0, 0.99))
    def test_threshold_always_explores(self, curve: list[list[float]], threshold: float) -> None:
        for row in chosen(EntropyPeaks(threshold=threshold), len(curve[0]), curve):
            assert 1 <= len(row) <= len(curve[0]) - 1

    def test_refuses_a_reading_of_other_steps_or_prompts(self) -> None:
        reading = EntropyReading(torch.rand(2, 6))
        with pytest.raises(ValueError, match=r"shape \(2, 6\)"):
            EntropyPeaks()(reading, NOISE, torch.arange(2), 8)
        with pytest.raises(ValueError, match="3 prompts"):
            EntropyPeaks()(reading, NOISE, torch.arange(3), 6)


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


@pytest.mark.parametrize(
    ("selector", "num_steps", "message"),
    [
        (EntropyPeaks(top_k=12), 10, "top_k=12 needs at least 13 denoising steps"),
        (EntropyPeaks(top_k=10), 10, "lower top_k or raise num_steps"),
    ],
)
def test_validate_names_what_to_change(
    selector: StepSelector, num_steps: int, message: str
) -> None:
    assert_too_few_steps(selector, num_steps, message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EntropyPeaks(top_k=0), "top_k=0"),
        (lambda: EntropyPeaks(mode="peaks"), "mode='peaks'"),
        (lambda: EntropyPeaks(scope="all"), "scope='all'"),
        (lambda: EntropyPeaks(threshold=1.0), "threshold=1.0"),
        (lambda: EntropyPeaks(mode="local_maxima", threshold=0.5), "exclude each other"),
    ],
)
def test_constructors_refuse(build: Callable[[], StepSelector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
