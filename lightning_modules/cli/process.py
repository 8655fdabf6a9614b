"""The process before torch is imported: its name, its allocator, its number of threads."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def program_name() -> str:
    """How this program was called: by a console script, or as a module."""
    name = Path(sys.argv[0]).name
    return "python -m aegpo" if name in ("__main__.py", "main.py") else name


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
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return
    if quota == "max":
        return
    cores = max(1, int(quota) // int(period))
    if cores < len(os.sched_getaffinity(0)):
        os.environ["OMP_NUM_THREADS"] = str(cores)
