"""What ends one of several ranks ends them all: real processes, real signals, real deaths."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from rank_pair import TWO, Ended, Ranks, fit

MODULE = """
import os

import lightning as L
from aegpo.distributed import world


class Fails(L.Callback):
    def __init__(self, rank: int, kind: str):
        self.rank, self.kind = rank, kind

    def on_train_batch_end(self, trainer, pl_module, *args):
        print("iteration", pl_module.iteration, flush=True)
        if world()[1] != self.rank or pl_module.iteration < 2:
            return
        if self.kind == "os":
            raise OSError(28, "No space left on device")
        if self.kind == "memory":
            raise MemoryError("no memory")
        if self.kind == "exit":
            os._exit(3)

"""


def start(folder: Path, *options: str, callback: str = "", batches: int = 60) -> Ranks:
    """Two ranks of a training that goes on for long."""
    (folder / "my_ranks.py").write_text(MODULE)
    added = ["--trainer.callbacks+", "my_ranks.Fails"] if callback else []
    kinds = [f"--trainer.callbacks.{part}" for part in callback.split()]
    sizes = ("--model.allocator.low", "2", "--model.allocator.high", "4")
    long = ("--data.batches_per_epoch", str(batches))
    return Ranks(folder, [fit(folder, *TWO, *sizes, *long, *added, *kinds, *options)])


def ended(ranks: Ranks, within: float = 180) -> list[Ended]:
    """Wait, and check that no rank took longer than it may."""
    return ranks.ended(within)


@pytest.mark.parametrize(
    ("callback", "line"),
    [
        ("rank=0 --trainer.callbacks.kind=os", "No space left on device"),
        ("rank=1 --trainer.callbacks.kind=memory", "out of memory"),
        ("rank=1 --trainer.callbacks.kind=exit", "ended without a word"),
        ("rank=0 --trainer.callbacks.kind=exit", "ended without a word"),
    ],
    ids=["an error on rank 0", "no memory on rank 1", "rank 1 is gone", "rank 0 is gone"],
)
def test_a_rank_that_fails_takes_the_others_with_it(
    tmp_path: Path, callback: str, line: str
) -> None:
    failing = int(callback[5])
    ranks = start(tmp_path, callback=callback.replace("--trainer.callbacks.", ""))
    ranks.wait_for("iteration 2", failing)
    results = ended(ranks)
    assert all(one.exit not in (0, None) for one in results), results
    told = [text for text in results[1 - failing].output.splitlines() if f"rank {failing} " in text]
    assert len(told) == 1 and line in told[0] and " was in " in told[0], results
    if line[0] != "e":
        assert f"error: {line}" in results[failing].output or line in results[failing].output
        assert "Traceback" not in results[failing].output


@pytest.mark.parametrize("who", ["rank 0", "rank 1", "both"])
def test_a_signal_ends_all_ranks_with_a_checkpoint(tmp_path: Path, who: str) -> None:
    number = signal.SIGTERM
    # A busy machine takes long for an iteration, which is not what is tested.
    ranks = start(tmp_path, "--trainer.end_within", "150", callback="rank=9 kind=none")
    ranks.wait_for("iteration 1")
    for rank in (0, 1):
        if who in ("both", f"rank {rank}"):
            os.kill(ranks.pid(rank), number)
    results = ended(ranks)
    assert [one.exit for one in results] == [128 + number] * 2, results
    assert "told to end: wrote" in results[0].output
    assert (tmp_path / "runs/shapes/checkpoints/last.ckpt").is_file()
