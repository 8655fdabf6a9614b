"""Processes with everything imported when they start: all are forked from one warm server.

A process takes ten seconds otherwise. There is one server in each process of a test run.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

_PRELOADED = [
    *("lightning_modules.cli.lightning_cli", "lightning_modules.aegpo_module", "callbacks"),
    *("datamodules", "aegpo.policies", "torch.utils.tensorboard", "rank_trace"),
    "lightning_modules.commands.serve_reward",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
]


def forkserver() -> ForkServerContext:
    """What starts such processes."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    return multiprocessing.get_context("forkserver")


def begin(
    environment: Mapping[str, str], output: Path | None = None, *, traced: bool = False
) -> None:
    """Make a forked process one of its own.

    Args:
        environment: All of it; that of the server is the environment of the first test.
        output: File that both streams go to.
        traced: Whether coverage goes on, for a process that ends as Python does. What is killed or
            calls `os._exit` writes none, and would be slower by a third for nothing.
    """
    if not traced and "coverage" in sys.modules:
        running = sys.modules["coverage"].Coverage.current()
        if running is not None:
            running.stop()
    os.environ.clear()
    os.environ.update(environment)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
    faulthandler.enable(2)  # what dies of a signal says where
    import torch

    torch.set_num_threads(1)
    # The server has asked for GPUs, after which torch warns of forks; nothing here computes on one.
    torch.cuda._is_in_bad_fork = lambda: False
