"""The process before torch is imported: its name, its allocator, its number of threads."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from aegpo.cores import CoreWatch, cpu_quota
from lightning_modules.arguments.sources import OUR_PACKAGES

SPINS = "1000"
"""Turns that a thread of OpenMP waits for the next piece of work before it sleeps."""


def program_name() -> str:
    """How this program was called: by a console script, or as a module."""
    name = Path(sys.argv[0]).name
    return "python -m aegpo" if name in ("__main__.py", "main.py") else name


def another_rank() -> int:
    """This process's rank where a launcher has started several, 0 where it is the only one.

    Lightning reads the same variables, of torchrun, SLURM and its own launcher, in this order.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def quieten_libraries() -> None:
    """Leave out what libraries say as they are imported and nobody here can mend.

    Where bitsandbytes is installed for 8-bit optimizers, it warns of a kernel that is used on CPUs
    only.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def tell_warnings_in_a_line() -> None:
    """Print a warning of this program as one line; those of libraries as they are.

    Python adds the category, the place and the line of code that warns, which say nothing to
    whoever reads it. To be called again after Lightning, which replaces the same as it is imported.
    """
    if not isinstance(warnings.formatwarning, _InALine):
        warnings.formatwarning = _InALine(warnings.formatwarning)


class _InALine:
    """Formats warnings: what stands in our packages in a line.

    Args:
        others: Formats the others.
    """

    def __init__(self, others: Callable[..., str]) -> None:
        self._others = others
        root = Path(__file__).parents[2]
        self._ours = tuple(f"{root / name}{os.sep}" for name in OUR_PACKAGES)

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if filename.startswith(self._ours):
            return f"warning: {' '.join(str(message).split())}\n"
        return self._others(message, category, filename, lineno, line)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of handing it back to the system.

    A rollout allocates and frees the same few large blocks thousands of times; by default each is
    mapped, zeroed page by page and unmapped again, which costs several times the arithmetic on a
    CPU. Does nothing away from Linux with glibc.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    try:
        if "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
            return
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):
        return
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 1 << 30)


def respect_cpu_quota() -> None:
    """Give torch as many threads as a container's CPU quota has cores.

    torch counts the cores that it sees; under a quota it then starts more threads than may run,
    and they wait for each other. A thread count that is set already stands. Without a quota the
    choice is left to torch, and with several processes to Lightning.
    """
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "sched_getaffinity"):
        return
    quota = cpu_quota()
    if quota is None:
        return
    cores = max(1, int(quota))
    if cores < len(os.sched_getaffinity(0)):
        os.environ["OMP_NUM_THREADS"] = str(cores)


def spin_briefly() -> None:
    """Let torch's threads sleep soon when they wait for each other.

    By default OpenMP's threads spin for milliseconds. Where another process has one of their cores,
    the others spin for as long as it keeps it: an iteration of the quickstart on two cores, one of
    them busy, took 5.3 s with OpenMP's 300,000 turns and 3.4 s with 1,000, and on two free ones
    1.72 s and 1.75 s. What the user set stands. libgomp reads it when torch is imported.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


class _Start:
    """What the machine did while the program started."""

    cores: CoreWatch | None = None


def watch_cores() -> None:
    """Note what the machine does, for `busy_cores`."""
    _Start.cores = CoreWatch()


def busy_cores(threads: int) -> str | None:
    """Say if fewer cores were free since `watch_cores` than torch has threads.

    Args:
        threads: The threads that torch computes with.

    Returns:
        One line; None where there are enough cores, or where it is not known.
    """
    free = None if _Start.cores is None else _Start.cores.free()
    if free is None or threads == 1 or free > threads - 0.5:
        return None
    return (
        f"other processes leave {free:.1f} cores free, and {threads} threads wait for each other "
        f"there: OMP_NUM_THREADS={max(1, round(free))} is faster while that lasts, and "
        "--trainer.callbacks+=callbacks.FreeCores changes with it"
    )


def end_without_stuck_threads(error: BaseException | None) -> None:
    """End the process if a reward's call hangs for ever; do nothing if none does.

    Python waits at its end for the threads of every pool, those that such a call has started too.

    Args:
        error: What ended the program; None if all went well.
    """
    from aegpo.rewards.time_limit import stuck_threads  # imports torch, as the program has by now

    stuck = stuck_threads()
    if not stuck:
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    print(f"{len(stuck)} calls of a reward never returned and are left behind", file=sys.stderr)
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
