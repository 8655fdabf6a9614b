"""The program as a process of its own that has everything imported when it starts."""

from __future__ import annotations

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from forkserver import begin, forkserver


class Forked:
    """A started program, as `subprocess.Popen` is one; the leader of a process group."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        self._process.join(timeout)
        status = self._process.exitcode
        assert status is not None, "it did not end"
        return status


def start_forked(arguments: list[str], output: Path, program: str = "aegpo") -> Forked:
    """Start the program in the current folder, in a process group of its own.

    Args:
        arguments: What is typed after its name.
        output: File that both streams are appended to.
        program: Its name, or the script that a launcher starts the other ranks with.

    Returns:
        The process.
    """
    words = [program, *arguments]
    process = forkserver().Process(
        target=_program, args=(words, output, os.getcwd(), dict(os.environ))
    )
    process.start()
    return Forked(process)


def _program(words: list[str], output: Path, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    begin(environment, output, traced=True)
    sys.argv = words
    from lightning_modules.cli.main import main

    main()
