"""Seconds that each phase of a training step takes."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


class PhaseTimer:
    """Sums wall-clock seconds by phase; a phase inside another one counts in both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `phase`."""
        _synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            _synchronize()
            self.seconds[phase] += time.perf_counter() - start

    def reset(self) -> dict[str, float]:
        """Return the seconds since the last call and start again from zero."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


def timed(phase: str) -> Callable[[F], F]:
    """Time a method of an object that has a `PhaseTimer` in its attribute `timer`."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def measured(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self.timer.measure(phase):
                return method(self, *args, **kwargs)

        return cast(F, measured)

    return decorate


def _synchronize() -> None:
    # GPU work is queued: without waiting for it, its time would count in the next phase.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
