"""Work in a thread that a test waits for, and never for ever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Alongside(Generic[T]):
    """A function that runs while the test goes on.

    Its thread is a daemon: neither a test nor the end of Python waits for one that hangs.

    Args:
        work: The function, called at once.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._answer: Future[T] = Future()

        def run() -> None:
            try:
                self._answer.set_result(work())
            except BaseException as error:  # raised where it is waited for
                self._answer.set_exception(error)

        Thread(target=run, name="alongside", daemon=True).start()

    def result(self, seconds: float = 60) -> T:
        """Wait for its end.

        Args:
            seconds: When it is given up.

        Returns:
            What it returned.

        Raises:
            AssertionError: If it has not ended by then; else whatever it raised.
        """
        try:
            return self._answer.result(seconds)
        except NotInTime:
            assert self._answer.done(), f"it has not ended after {seconds:g} s"
            raise
