from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.allocation import (
    Allocator,
    MedianSplitAllocator,
    ProportionalAllocator,
    UniformAllocator,
)
from aegpo.entropy.reading import EntropyReading

# Few values, so that ties are common, and some far apart.
DELTAS = st.lists(st.sampled_from([0.0, 1e-30, 0.1, 0.25, 0.3, 2.0, 1e8]), min_size=1, max_size=12)


def reading(delta: list[float] | None, num_prompts: int | None = None) -> EntropyReading:
    rows = num_prompts if delta is None else len(delta)
    return EntropyReading(
        torch.zeros(rows, 4), None if delta is None else torch.tensor(delta, dtype=torch.float32)
    )


def sizes(allocator: Allocator, delta: list[float]) -> list[int]:
    result = allocator(reading(delta), len(delta))
    assert result.dtype == torch.int64
    return result.tolist()


ALLOCATORS = st.one_of(
    st.builds(UniformAllocator, st.integers(2, 20)),
    st.builds(
        lambda low, extra: MedianSplitAllocator(low, low + 2 * extra),
        st.integers(2, 10),
        st.integers(0, 8),
    ),
    st.builds(
        lambda low, extra, power, more: ProportionalAllocator(
            low + extra, low, power, None if more is None else low + extra + more
        ),
        st.integers(2, 5),
        st.integers(0, 12),
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        st.sampled_from([None, 0, 1, 5, 30]),
    ),
)


@settings(deadline=None)
@given(ALLOCATORS, DELTAS)
def test_spends_the_budget_exactly(allocator: Allocator, delta: list[float]) -> None:
    result = sizes(allocator, delta)
    assert sum(result) == allocator.budget(len(delta))
    assert allocator.budget(len(delta)) == allocator.images_per_prompt * len(delta)
    assert min(result) >= 2
    assert max(result) <= (getattr(allocator, "maximum", None) or 10**6)


@settings(deadline=None)
@given(ALLOCATORS, DELTAS)
def test_more_delta_never_means_fewer_images(allocator: Allocator, delta: list[float]) -> None:
    result = sizes(allocator, delta)
    for one, images in zip(delta, result, strict=True):
        for other, other_images in zip(delta, result, strict=True):
            assert not (one > other and images < other_images)


@settings(deadline=None)
@given(ALLOCATORS, st.integers(1, 12))
def test_without_a_signal_all_receive_the_mean(allocator: Allocator, num_prompts: int) -> None:
    mean = [allocator.images_per_prompt] * num_prompts
    assert allocator(None, num_prompts).tolist() == mean
    assert allocator(reading(None, num_prompts), num_prompts).tolist() == mean
    assert allocator(reading([0.3] * num_prompts), num_prompts).tolist() == mean


def test_uniform() -> None:
    assert sizes(UniformAllocator(6), [0.1, 5.0, 0.0]) == [6, 6, 6]


class TestMedianSplit:
    def test_halves(self) -> None:
        assert sizes(MedianSplitAllocator(), [0.1, 0.4, 0.2, 0.3]) == [8, 16, 8, 16]

    def test_ties_at_the_median_go_to_the_earlier_row(self) -> None:
        assert sizes(MedianSplitAllocator(), [0.2, 0.5, 0.2, 0.2]) == [16, 16, 8, 8]

    def test_the_middle_of_an_odd_batch_receives_the_mean(self) -> None:
        assert sizes(MedianSplitAllocator(), [0.1, 0.5, 0.3]) == [8, 16, 12]
        assert sizes(MedianSplitAllocator(), [0.5]) == [12]

    def test_an_odd_batch_without_a_whole_mean_is_refused(self) -> None:
        with pytest.raises(ValueError, match="even batch_size"):
            MedianSplitAllocator(8, 15).validate(3)
        with pytest.raises(ValueError, match="even batch_size"):
            MedianSplitAllocator(8, 15)(None, 3)
        assert sizes(MedianSplitAllocator(8, 15), [0.1, 0.5]) == [8, 15]
        # The mean 11.5 is not whole, but two of them are; the budget stays 23.
        assert MedianSplitAllocator(8, 15)(None, 2).tolist() == [12, 11]


class TestProportional:
    def test_by_hand(self) -> None:
        # Budget 24, minimum 2 each leaves 16 to share 1 : 3 : 4 : 0 of 8.
        allocator = ProportionalAllocator(images_per_prompt=6, minimum=2)
        assert sizes(allocator, [0.1, 0.3, 0.4, 0.0]) == [4, 8, 10, 2]

    def test_largest_remainder(self) -> None:
        # Budget 9, 3 to share 1 : 1 : 2.5 of 4.5 -> .67, .67, 1.67: the tie goes to more delta.
        allocator = ProportionalAllocator(images_per_prompt=3, minimum=2)
        assert sizes(allocator, [1.0, 1.0, 2.5]) == [3, 2, 4]

    def test_power_sharpens(self) -> None:
        # 10 to share 1 : 9 instead of 1 : 3.
        allocator = ProportionalAllocator(images_per_prompt=7, minimum=2, power=2.0)
        assert sizes(allocator, [0.1, 0.3]) == [3, 11]

    def test_what_is_above_the_maximum_goes_to_the_others(self) -> None:
        # 16 are above the minimum, 5 fit. The last would get 10 of them; of 11, 1 : 1 : 2 makes 5.5
        # of the third; the others have 3 each.
        allocator = ProportionalAllocator(images_per_prompt=6, minimum=2, maximum=7)
        assert sizes(allocator, [0.1, 0.1, 0.2, 0.7]) == [5, 5, 7, 7]
        assert sizes(allocator, [0.0, 0.0, 0.0, 0.7]) == [6, 6, 5, 7]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformAllocator(1), "fewer than 2 images"),
        (lambda: MedianSplitAllocator(1, 16), "low=1"),
        (lambda: MedianSplitAllocator(8, 4), "high=4"),
        (lambda: ProportionalAllocator(12, 1), "minimum=1"),
        (lambda: ProportionalAllocator(3, 4), "images_per_prompt=3"),
        (lambda: ProportionalAllocator(power=-1.0), "power=-1.0"),
        (lambda: ProportionalAllocator(12, maximum=11), "maximum=11"),
    ],
)
def test_constructors_refuse(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_refuses_no_prompts_and_a_reading_of_others() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        UniformAllocator().validate(0)
    with pytest.raises(ValueError, match="3 prompts"):
        MedianSplitAllocator()(reading([0.1, 0.2]), 3)
