"""Cores that other processes leave to this one; knows Linux only, and says nothing elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

STAT = Path("/proc/stat")
QUOTA = Path("/sys/fs/cgroup/cpu.max")

SHORTEST = 0.1
"""Seconds below which nothing is said: the system counts hundredths."""


class _Look(NamedTuple):
    """What was used up to a moment, in seconds of one core."""

    clock: float
    busy: dict[int, float]  # by each core that this process may run on, for all processes
    own: float


class CoreWatch:
    """Measures between two looks how many cores were free for this process."""

    def __init__(self) -> None:
        self._last = _look()

    def free(self) -> float | None:
        """How many cores the other processes left since the last look.

        A process that competes with this one for a core gets a part of it only, and counts with
        that part.

        Returns:
            A number of cores, at most those of a container's quota; None where it is not known, or
            where the last look was a moment ago, which then stays the last.
        """
        before, now = self._last, _look()
        if before is None or now is None or now.clock - before.clock < SHORTEST:
            return None
        self._last = now
        seconds = now.clock - before.clock
        common = now.busy.keys() & before.busy.keys()
        busy = sum(now.busy[core] - before.busy[core] for core in common)
        others = max(0.0, busy - (now.own - before.own)) / seconds
        left = max(0.0, len(common) - others)
        quota = cpu_quota()
        return left if quota is None else min(left, quota)


def cpu_quota() -> float | None:
    """Cores that a container's quota allows; None without one."""
    try:
        quota, period = QUOTA.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _look() -> _Look | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        lines = STAT.read_text().splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
        busy = {}
        for line in lines:
            name, *used = line.split()
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, _idle, _wait, *interrupts = map(int, used)
                # Interrupts of both kinds, and what a host took away.
                busy[int(name[3:])] = (user + nice + system + sum(interrupts[:3])) / ticks
    except (OSError, ValueError):
        return None
    allowed = os.sched_getaffinity(0)
    mine = {core: used for core, used in busy.items() if core in allowed}
    return _Look(time.monotonic(), mine, time.process_time()) if mine else None
