"""The program as a process of its own that has everything imported when it starts."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

_PIPELINE = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3"
# Imported once, by the server that such processes are forked from.
multiprocessing.set_forkserver_preload(
    [
        *("lightning_modules.cli.lightning_cli", "lightning_modules.aegpo_module", "callbacks"),
        *("datamodules", "aegpo.policies", "torch.utils.tensorboard", _PIPELINE),
    ]
)


class Forked:
    """A started program, as `subprocess.Popen` is one; the leader of a process group."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
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


def start_forked(arguments: list[str], output: Path) -> Forked:
    """Start ``aegpo`` with arguments in the current folder, in a process group of its own."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(
        target=_program, args=(arguments, str(output), os.getcwd(), dict(os.environ))
    )
    process.start()
    return Forked(process)


def _program(arguments: list[str], output: str, folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()  # of the server, which has that of the first test
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = ["aegpo", *arguments]
    import torch

    # The server has asked for GPUs, after which torch warns of forks; nothing here computes on one.
    torch.cuda._is_in_bad_fork = lambda: False
    from lightning_modules.cli.main import main

    main()
