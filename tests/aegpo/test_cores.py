"""What other processes leave of a machine: by hand, and beside a process that computes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aegpo import cores
from aegpo.cores import CoreWatch, cpu_quota

linux = pytest.mark.skipif(not cores.STAT.exists(), reason="only Linux counts cores' time there")


class Machine:
    """Two cores whose counters are set by hand, in hundredths of a second."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stat, self.quota = folder / "stat", folder / "cpu.max"
        self.clock = self.own = 0.0
        monkeypatch.setattr(cores, "STAT", self.stat)
        monkeypatch.setattr(cores, "QUOTA", self.quota)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(os, "sysconf", lambda _: 100, raising=False)
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        self.at(0.0, 0.0, [0] * 4, [0] * 4)

    def at(self, clock: float, own: float, *used: list[int]) -> None:
        self.clock, self.own = clock, own
        rows = [
            f"cpu{core} {user} {nice} {system} 777 99 0 0 {stolen} 0 0"
            for core, (user, nice, system, stolen) in enumerate([*used, [9999] * 4])
        ]
        self.stat.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 0", *rows, "intr 5 0", "btime 7"]))


def test_what_others_used_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    watch = CoreWatch()
    # In 10 s this process used 5 s; others 3 + 2 + 1 s of the first core and 2 s of the second.
    machine.at(10.0, 5.0, [800, 200, 100, 0], [0, 0, 0, 200])
    assert watch.free() == pytest.approx(2 - 0.8)
    machine.at(10.05, 5.0, [900, 200, 100, 0], [0, 0, 0, 200])
    assert watch.free() is None, "too short to say"
    machine.at(12.0, 5.0, [800, 200, 100, 0], [0, 0, 0, 200])
    assert watch.free() == pytest.approx(2), "counted from the last look that was long enough"
    machine.quota.write_text("150000 100000\n")
    machine.at(14.0, 5.0, [800, 200, 100, 0], [0, 0, 0, 200])
    assert watch.free() == pytest.approx(1.5) and cpu_quota() == 1.5
    machine.quota.write_text("max 100000\n")
    assert cpu_quota() is None
    machine.stat.unlink()
    assert watch.free() is None and CoreWatch().free() is None


@linux
def test_a_process_that_computes_takes_a_core_and_this_one_does_not_count() -> None:
    def free(seconds: float) -> float:
        watch, end = CoreWatch(), time.monotonic() + seconds
        while time.monotonic() < end:
            pass  # what this process itself uses is its own
        found = watch.free()
        assert found is not None
        return found

    alone = free(0.5)
    busy = f"import time; end = time.time() + 20\nwhile time.time() < end: pass\n# {os.getpid()}"
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.5)
        beside = free(1.0)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert beside < len(others) * 0.75 + 0.01
    assert alone <= len(others)
