"""FreeCores: as many threads as there are free cores, on a machine that is shared."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from aegpo.cores import CoreWatch
from aegpo.training import Training


class FreeCores(L.Callback):
    """Gives torch as many threads as other processes leave cores, between two iterations.

    Threads that share a core wait for each other: with one of two cores busy, two threads are
    slower than one. This callback looks at what the other processes used, before the first
    iteration and then every few seconds, and changes the number of threads of this process, up to
    what it was at the start (`OMP_NUM_THREADS`, or torch's own choice). It does nothing away from
    Linux.

    Another number of threads adds in another order, so that a run can no longer be repeated to the
    last bit: that is why no config has it.

    Args:
        every_n_seconds: Seconds between two looks, at least; what is measured is their mean.

    Raises:
        ValueError: If `every_n_seconds` is not above 0.
    """

    def __init__(self, every_n_seconds: float = 5.0) -> None:
        if not every_n_seconds > 0:
            raise ValueError(f"FreeCores every_n_seconds={every_n_seconds} must be above 0")
        self.every_n_seconds = every_n_seconds
        self._most: int | None = None
        self._watch = CoreWatch()
        self._looked = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Look at what was free while the run was built."""
        self._most = torch.get_num_threads()
        self._look(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look again, if the last look is long enough ago."""
        if time.monotonic() - self._looked >= self.every_n_seconds:
            self._look(pl_module)

    def _look(self, pl_module: Training) -> None:
        self._looked, free = time.monotonic(), self._watch.free()
        if free is None or self._most is None:
            return
        threads = min(max(round(free), 1), self._most)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            rank_zero_info(
                f"{threads} of {self._most} threads from iteration {pl_module.iteration} on: "
                f"{free:.1f} cores are free"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Leave torch with the threads that it had."""
        if self._most is not None:
            torch.set_num_threads(self._most)

    def on_exception(
        self, trainer: L.Trainer, pl_module: Training, exception: BaseException
    ) -> None:
        """Leave torch with the threads that it had."""
        self.on_train_end(trainer, pl_module)
