"""What ends one of several ranks ends them all: real processes, real signals, real deaths."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from rank_pair import TWO, Ended, Ranks, fit

MODULE = """
import os
import time

import lightning as L
from aegpo.distributed import world
from aegpo.rewards import ShapesMatch


class Fails(L.Callback):
    def __init__(self, rank: int, kind: str, hook: str = "on_train_batch_end"):
        self.rank, self.kind, self.hook = rank, kind, hook

    def on_train_batch_end(self, trainer, pl_module, *args):
        print("iteration", pl_module.iteration, flush=True)
        if world()[1] != self.rank or pl_module.iteration < 2:
            return
        if self.kind == "os":
            raise OSError(28, "No space left on device")
        if self.kind == "memory":
            raise MemoryError("no memory")
        if self.kind == "hang":
            time.sleep(200)
        if self.kind == "exit":
            os._exit(3)


class Broken(ShapesMatch):
    name = "broken"

    def __call__(self, images, prompts, metadata):
        if world()[1] == 1:
            raise ConnectionError("server away")
        return super().__call__(images, prompts, metadata)
"""


def start(folder: Path, *options: str, callback: str = "", batches: int = 60) -> Ranks:
    """Two ranks of a training that goes on for long."""
    (folder / "my_ranks.py").write_text(MODULE)
    added = ["--trainer.callbacks+", "my_ranks.Fails"] if callback else []
    kinds = [f"--trainer.callbacks.{part}" for part in callback.split()]
    sizes = ("--model.allocator.low", "2", "--model.allocator.high", "4")
    long = ("--data.batches_per_epoch", str(batches))
    return Ranks(folder, [fit(folder, *TWO, *sizes, *long, *added, *kinds, *options)])


def ended(ranks: Ranks, within: float = 30) -> list[Ended]:
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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_ranks_with_a_checkpoint(
    tmp_path: Path, who: str, number: signal.Signals
) -> None:
    ranks = start(tmp_path, callback="rank=9 kind=none")
    ranks.wait_for("iteration 1")
    for rank in (0, 1):
        if who in ("both", f"rank {rank}"):
            os.kill(ranks.pid(rank), number)
    results = ended(ranks)
    assert [one.exit for one in results] == [128 + number] * 2, results
    assert "told to end: wrote" in results[0].output
    assert (tmp_path / "runs/shapes/checkpoints/last.ckpt").is_file()


def test_a_signal_ends_ranks_that_hang(tmp_path: Path) -> None:
    ranks = start(tmp_path, "--trainer.end_within", "3", callback="rank=0 kind=hang")
    ranks.wait_for("iteration 2", 0)
    os.kill(ranks.pid(1), signal.SIGTERM)  # which waits in a collective, and runs no handler
    results = ended(ranks)
    assert [one.exit for one in results] == [143, 143], results
    assert "was told to end (SIGTERM) and was in all_" in results[1].output
    assert "rank 1 was told to end (SIGTERM), in all_" in results[0].output


def test_a_wait_beyond_the_limit_ends_all_and_says_where(tmp_path: Path) -> None:
    ranks = start(tmp_path, "--trainer.rank_timeout", "8", callback="rank=1 kind=hang")
    ranks.wait_for("iteration 2", 1)
    began = time.monotonic()
    results = ended(ranks, 45)
    assert time.monotonic() - began > 5
    assert all(one.exit not in (0, None) for one in results), results
    assert "waited too long for the other ranks: " in results[0].output
    assert "raise trainer.rank_timeout" in results[0].output
    assert "Fails.on_train_batch_end (my_ranks.py" in results[1].output  # where rank 1 was


def test_a_reward_that_fails_on_one_rank_costs_its_images(tmp_path: Path) -> None:
    options = ("--model.reward", "my_ranks.Broken", "--trainer.limit_val_batches", "0")
    ranks = start(tmp_path, *options, "--model.max_missing", "0.9", batches=1)
    results = ended(ranks, 120)
    assert [one.exit for one in results] == [0, 0], results
    assert "server away" in results[1].output and "server away" not in results[0].output


def test_a_full_disk_on_rank_0_costs_a_checkpoint_and_no_rank(tmp_path: Path) -> None:
    folder = tmp_path / "runs/shapes/checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").mkdir()  # nothing can take its name
    results = ended(start(tmp_path, batches=1), 120)
    assert [one.exit for one in results] == [0, 0], results
    assert "last.ckpt could not be written" in results[0].output
    assert "could not be written" not in results[1].output
