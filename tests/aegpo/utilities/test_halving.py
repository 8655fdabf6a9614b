"""Chunks that are halved where memory runs out; the allocator that refuses is torch's own."""

from __future__ import annotations

import warnings

import pytest
import torch

from aegpo.utilities.halving import OneRowTooMany, halving, is_out_of_memory


class Work:
    """Squares ten numbers; more than `fits` at a time need more memory than any machine has."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.sizes: list[int] = []
        self.undone: list[int] = []

    def __call__(self, size: int) -> list[int]:
        self.sizes.append(size)
        squares: list[int] = []
        for chunk in torch.arange(10).split(size):
            torch.empty(max(len(chunk) - self.fits, 0) << 60, dtype=torch.uint8)
            squares += chunk.square().tolist()
        return squares


def test_the_work_begins_anew_with_half_the_chunk_and_says_so_once() -> None:
    work = Work(fits=3)
    with pytest.warns(UserWarning) as told:
        squares, size = halving(
            work, 10, 64, setting="max_batch", undo=work.undone.append, factor=2
        )
    assert squares == [number**2 for number in range(10)] and size == 2
    assert work.sizes == [64, 5, 2] and work.undone == [5, 2]
    (line,) = {str(one.message) for one in told}
    assert line == (
        "out of memory with max_batch=128; 4 fits, and this run goes on with it: set max_batch: 4 "
        "next time"
    )


def test_one_row_too_many_ends_it_with_what_the_allocator_said() -> None:
    with pytest.raises(OneRowTooMany, match="can't allocate memory") as caught:
        halving(Work(fits=0), 10, 4, setting="max_batch")
    assert is_out_of_memory(caught.value)


def test_of_work_inside_work_the_outer_one_is_halved() -> None:
    inner = Work(fits=3)

    def outer(size: int) -> int:
        halving(inner, 10, size * 2, setting="max_batch")
        return size

    with pytest.warns(UserWarning, match="micro_batch_size=8; 1 fits"):
        assert halving(outer, 4, 8, setting="micro_batch_size") == (1, 1)
    assert inner.sizes == [16, 4, 2]


def test_where_it_is_not_possible_and_for_other_errors_nothing_is_tried_again() -> None:
    work = Work(fits=3)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        halving(work, 10, 64, setting="max_batch", possible=False)
    assert work.sizes == [64]

    def wrong(size: int) -> None:
        raise ValueError(f"no {size}")

    with pytest.raises(ValueError, match="no 64"), warnings.catch_warnings():
        warnings.simplefilter("error")
        halving(wrong, 10, 64, setting="max_batch")
