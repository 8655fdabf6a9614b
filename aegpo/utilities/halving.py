"""Work done in chunks that are halved where memory runs out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")

_TRYING = ContextVar("trying", default=False)
"""Whether a chunk is being tried further out: it is that one that is halved."""


class OneRowTooMany(MemoryError):
    """Not even one row at a time fits into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device's or the computer's memory was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator, MPS and some of CUDA's libraries raise nothing more special.
    said = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def halving(
    run: Callable[[int], T],
    rows: int,
    size: int,
    *,
    setting: str,
    undo: Callable[[int], None] | None = None,
    factor: int = 1,
    possible: bool = True,
) -> tuple[T, int]:
    """Do work in chunks of `size` rows; where memory runs out, all of it anew with half of that.

    The work begins anew, and not at the chunk that failed, so that its result is that of the
    smaller chunk from the start. Where such work is part of other such work, only the outer one is
    halved. Ranks run out of memory each for itself, so where `run` is a collective of all of them
    it is not `possible`.

    Args:
        run: Does all of the work, given how many rows to take at a time.
        rows: How many there are.
        size: Most rows at a time, at least 1.
        setting: What sets the size, for the warning that says so.
        undo: Called with the next size before the work begins anew, to take back what was done.
        factor: Units of the setting to a row.
        possible: False runs it once, and whatever it raises is raised.

    Returns:
        What `run` returned, and the size to go on with: `size` unless memory ran out.

    Raises:
        OneRowTooMany: If memory ran out with one row at a time.
    """
    if _TRYING.get() or not possible:
        return run(size), size
    smaller = size
    while True:
        done, reason = _attempt(run, smaller)
        if reason is None:
            break
        smaller = min(smaller, rows) // 2
        if smaller == 0:
            raise OneRowTooMany(reason)
        if undo is not None:
            undo(smaller)
    if smaller != size:
        warnings.warn(
            f"out of memory with {setting}={size * factor}; {smaller * factor} fits, and this run "
            f"goes on with it: set {setting}: {smaller * factor} next time",
            stacklevel=3,
        )
    return done[0], smaller


def _attempt(run: Callable[[int], T], size: int) -> tuple[list[T], str | None]:
    """The result in a list, or why memory was not enough.

    The exception stays in here: it holds the frames in which the memory was taken.
    """
    outer = _TRYING.set(True)
    try:
        return [run(size)], None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    finally:
        _TRYING.reset(outer)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return [], reason
