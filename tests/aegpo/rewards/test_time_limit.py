"""Calls that are given up when their time is over."""

from __future__ import annotations

import threading
import time

import pytest

from aegpo.rewards.time_limit import TookTooLong, stuck_threads, within


def test_what_is_in_time_returns_or_raises_as_ever() -> None:
    assert within(60, lambda: 7) == 7
    for error in (KeyError("no"), TimeoutError("its own")):

        def fails(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            within(60, fails)
        assert caught.value is error
    assert not stuck_threads()


def test_what_is_not_is_given_up_and_forgotten_once_it_ends() -> None:
    release = threading.Event()
    start = time.perf_counter()
    with pytest.raises(TookTooLong, match=r"took longer than 0\.05 s"):
        within(0.05, lambda: release.wait(600))
    assert time.perf_counter() - start < 300
    (stuck,) = stuck_threads()
    assert stuck.daemon  # the process may end without it
    release.set()
    stuck.join(60)
    assert not stuck_threads()
