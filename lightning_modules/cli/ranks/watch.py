"""The thread beside a rank that ends it when another rank has ended, and when it was told to.

A rank that waits in a collective runs no Python: no signal handler, no exception. Signals therefore
reach this thread by a pipe that the interpreter writes to, and the process is ended from here.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from lightning_modules.cli.ranks.links import End, Links
from lightning_modules.cli.ranks.places import main_thread

LAUNCHER = "AEGPO_LAUNCHER"
"""Environment variable with the process that started this rank, if that is rank 0 itself."""

_FOR_ROOT = 15.0  # seconds that other ranks wait for rank 0 to end first
_TO_END = 20.0  # seconds that a rank that failed may take to end by itself
_ENDING = (signal.SIGTERM, signal.SIGINT)


class Watch:
    """What may end this rank: another rank, a signal, the process that started it.

    Args:
        end_within: Seconds after a signal, at which the process ends wherever it is.
    """

    def __init__(self, end_within: float = 25.0) -> None:
        self.end_within = end_within
        self.told = self._heard = 0
        self.last_words: Callable[[], None] = lambda: None
        self._links: Links | None = None
        self._failed = False
        self._selector = selectors.DefaultSelector()
        self._read, self._write = socket.socketpair()
        self._deadline: tuple[float, int, str] | None = None
        self._closed = False
        self._launcher = int(os.environ.get(LAUNCHER, os.getpid()))
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; called by the main thread, which signals belong to."""
        for end in (self._read, self._write):
            end.setblocking(False)
        self._selector.register(self._read, selectors.EVENT_READ, None)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    @property
    def linked(self) -> bool:
        """Whether this is one of several ranks that end together."""
        return self._links is not None and not self._closed

    def link(self, links: Links) -> None:
        """Watch the other ranks too."""
        with self._lock:
            self._links = links
            links.register(self._selector)
        self._wake()

    def fail(self, line: str, status: int) -> None:
        """Tell the other ranks that this one has failed; it may then end by itself."""
        self._failed = True
        if self._links is not None:
            self._links.tell(End(self._links.rank, line, status))
        self._set_deadline(_TO_END, status, line)

    def wait_to_be_ended(self, seconds: float) -> None:
        """Give the other ranks time to say why they are gone; their word ends this process."""
        time.sleep(seconds)

    def leave(self, status: int) -> None:
        """End this process, after rank 0's: Lightning has rank 0 killed when another is gone."""
        if self._links is not None:
            self._links.tell(End(self._links.rank, "", status, failed=False))
        self._end(status)

    def close(self) -> None:
        """The run is done: no end of a process means anything any more."""
        if self._closed:
            return
        if self._links is not None:
            self._links.tell(End(self._links.rank, "", 0, failed=False))
        self._closed = True
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._write.send(b"\0")

    def _set_deadline(self, seconds: float, status: int, why: str) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds, status, why
            self._wake()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.5):
                if key.data is None:
                    self._hear_signals()
                elif self._links is not None:
                    with self._lock:
                        ends = list(self._links.hear(key.data, self._selector))
                    for end in ends:
                        self._end_with(end)
            if self._is_orphan():
                self._say("the process that started it is gone; it", 1)
                self._exit(1)
            if self._deadline is not None and time.monotonic() > self._deadline[0]:
                self._end_late(*self._deadline[1:])
        if self._links is not None:
            self._links.close()

    def _is_orphan(self) -> bool:
        return self._launcher not in (os.getpid(), os.getppid())

    def _hear_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in self._read.recv(4096):
                if number in _ENDING:
                    again = self._heard == number == signal.SIGINT
                    self._heard = self.told = number
                    name = signal.Signals(number).name
                    self._set_deadline(self.end_within, 128 + number, f"was told to end ({name})")
                    if again:
                        self._end_late(128 + number, f"was told to end ({name}) twice")

    def _end_with(self, end: End) -> None:
        """Another rank has ended before its time."""
        if not self._failed:
            self._say(f"rank {end.rank} {end.line}; it", end.status)
            self._end(end.status)

    def _end_late(self, status: int, why: str) -> None:
        place = main_thread()
        self._say(f"this rank {why} and", status)
        if self._links is not None and not self._failed:
            self._links.tell(End(self._links.rank, f"{why}, in {place}", status))
        self._end(status)

    def _say(self, what: str, status: int) -> None:
        rank = "" if self._links is None else f"rank {self._links.rank} "
        line = f"{rank}ends with status {status}: {what} was in {main_thread()}"
        print(line, file=sys.stderr, flush=True)

    def _end(self, status: int) -> None:
        links = self._links
        if links is not None and links.rank > 0:
            limit = time.monotonic() + _FOR_ROOT
            mine = threading.current_thread() is self._thread
            while links.connections and not links.root_is_gone and time.monotonic() < limit:
                if not mine:  # the thread hears of it
                    time.sleep(0.05)
                    continue
                for key, _ in self._selector.select(0.5):
                    if key.data is not None:
                        list(links.hear(key.data, self._selector))
        self._exit(status)

    def _exit(self, status: int) -> None:
        with contextlib.suppress(Exception):
            self.last_words()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
