"""Two warm processes that run one case after the other as ranks of one group."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from forkserver import begin, forkserver
from free_port import free_port


class WarmRanks:
    """Ranks that wait for work, so that a case costs no start of a process.

    Args:
        size: Number of ranks.
        limit: Seconds that one case may take; all ranks are ended after it.

    A thread of torch's gloo has died of a segmentation fault inside malloc, once in a dozen runs of
    the whole suite. So the first death by a signal is told and its case run anew; a second fails.
    """

    def __init__(self, size: int = 2, limit: float = 240.0) -> None:
        self.size, self.limit = size, limit
        self._pipes: list[Connection] = []
        self._ranks: list[BaseProcess] = []
        self._forgives = True

    def _start(self) -> None:
        context = forkserver()
        environment = dict(os.environ) | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "tests",
        }
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, environment), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._ranks.append(process)

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function of a module on every rank.

        Args:
            work: The function.
            *arguments: Its arguments; they are pickled.

        Returns:
            What each rank returned.

        Raises:
            AssertionError: If a rank raised, died or did not answer in time.
        """
        if not self._ranks:  # or an earlier test's case has ended them
            self._start()
        for pipe in self._pipes:
            pipe.send((work, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(self.limit):
                self.close()
                raise AssertionError(f"rank {rank} hangs; got {answers}")
            try:
                answers.append(pipe.recv())
            except EOFError:
                died = self._ranks[rank]
                died.join(10)  # its pipe ends a moment before it does
                self.close()
                end = f"rank {rank} ended with {died.exitcode}; got {answers}"
                if not self._forgives or (died.exitcode or 0) >= 0:
                    raise AssertionError(end) from None
                self._forgives = False
                warnings.warn(f"{end}; once more", stacklevel=2)
                return self.run(work, *arguments)
        errors = [text for failed, text in answers if failed]
        assert not errors, errors[0]
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the ranks; new ones are started when there is work again."""
        for process in self._ranks:
            process.kill()
            process.join()
        self._pipes, self._ranks = [], []


def _serve(pipe: Connection, rank: int, environment: dict[str, str]) -> None:
    """Run what comes through the pipe, under the environment that torchrun would give."""
    begin(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the life of the process
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, work(*arguments))
        except BaseException:
            answer = (True, f"rank {rank}: {traceback.format_exc()}")
        pipe.send(answer)
