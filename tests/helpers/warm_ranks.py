"""Two warm processes that run one case after the other as ranks of one group."""

from __future__ import annotations

import os
import sys
import traceback
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
    """

    def __init__(self, size: int = 2, limit: float = 240.0) -> None:
        self.size, self.limit = size, limit
        self._pipes: list[Connection] = []
        self._ranks: list[BaseProcess] = []

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
            try:
                assert pipe.poll(self.limit), f"rank {rank} did not answer"
                answers.append(pipe.recv())
            except (AssertionError, EOFError):
                self.close()
                raise AssertionError(f"rank {rank} hangs or has died; got {answers}") from None
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
