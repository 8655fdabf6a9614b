"""HalfBusy: times the iterations of a run, the second half of them beside busy processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import lightning as L

COUNT = "import time\nend = time.time() + 150\nwhile time.time() < end: pass"
"""A process that computes, and ends by itself if nobody ends it."""


class HalfBusy(L.Callback):
    """Prints how long every iteration took; after some of them every second core is made busy.

    Args:
        alone: Iterations before that.
    """

    def __init__(self, alone: int) -> None:
        self.alone, self.begun, self.last = alone, 0, 0.0
        self.others: list[subprocess.Popen[bytes]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Print what the last one took, and begin the next."""
        if self.begun > 0:
            case = "busy" if self.others else "free"
            print(f"iteration {case} {time.monotonic() - self.last:.3f}", flush=True)
        if self.begun == self.alone:
            number = max(1, len(os.sched_getaffinity(0)) // 2)
            self.others = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(number)]
        self.begun, self.last = self.begun + 1, time.monotonic()

    def teardown(self, *_: Any, **__: Any) -> None:
        """End the busy processes."""
        for other in self.others:
            other.kill()
            other.wait()
