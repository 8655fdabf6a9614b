"""A call that may take so long, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady
from typing import TypeVar

T = TypeVar("T")

_STUCK: list[threading.Thread] = []


class TookTooLong(TimeoutError):
    """A call was given up."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Make a call in a thread of its own, and give it up when its time is over.

    Nothing can end a thread from outside: what is given up goes on by itself, and what it returns
    is thrown away.

    Args:
        seconds: How long to wait, above 0.
        call: What is called.

    Returns:
        What it returned.

    Raises:
        TookTooLong: If it did not return in time.
        BaseException: What it raised.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # raised where it was asked for
            answer.set_exception(error)

    # A daemon: the process may end while it is stuck.
    thread = threading.Thread(target=work, name="limited", daemon=True)
    thread.start()
    try:
        return answer.result(timeout=seconds)
    except NotReady:
        if answer.done():  # the call itself raised a TimeoutError
            raise
        _STUCK.append(thread)
        raise TookTooLong(f"took longer than {seconds:g} s") from None


def stuck_threads() -> list[threading.Thread]:
    """The threads that were given up and have not ended yet."""
    _STUCK[:] = [thread for thread in _STUCK if thread.is_alive()]
    return list(_STUCK)
