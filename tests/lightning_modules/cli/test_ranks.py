"""What ends one of several ranks ends them all: real processes, real signals, real deaths."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from cli_runs import configs, run
from rank_pair import SHAPES, TWO, Command, Ended, Ranks, fit, on_ranks

from lightning_modules.cli.ranks.watch import LAUNCHER
from lightning_modules.cli.trainer import AEGPOTrainer

MODULE = """
import os
import resource
import time

import lightning as L
from aegpo.distributed import world
from aegpo.rewards import ShapesMatch


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
        if self.kind == "hang":
            time.sleep(600)
        if self.kind == "full":  # as a disk is: in the middle of the writing
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


class Broken(ShapesMatch):
    name = "broken"

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __call__(self, images, prompts, metadata):
        scores = super().__call__(images, prompts, metadata)
        if world()[1] == 1:
            if self.kind == "raises":
                raise ConnectionError("server away")
            scores[:] = float("nan")
        return scores
"""


def training(folder: Path, *options: str, batches: int = 60) -> Command:
    """A small training, which goes on for long by default."""
    command = fit(folder, "--model.allocator.low", "2", "--model.allocator.high", "4", *options)
    (folder / "my_ranks.py").write_text(MODULE)
    return command[0], [*command[1], "--data.batches_per_epoch", str(batches)]


def start(folder: Path, *options: str, callback: str = "") -> Ranks:
    """Two ranks of a training that goes on for long."""
    added = ["--trainer.callbacks+", "my_ranks.Fails"] if callback else []
    kinds = [f"--trainer.callbacks.{part}" for part in callback.split()]
    return Ranks(folder, [training(folder, *TWO, *added, *kinds, *options)])


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


@pytest.mark.parametrize(
    ("number", "who"),
    [
        (signal.SIGTERM, "rank 0"),
        (signal.SIGTERM, "rank 1"),
        (signal.SIGTERM, "both"),
        (signal.SIGINT, "rank 1"),
        (signal.SIGINT, "both"),
    ],
)
def test_a_signal_ends_all_ranks_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, who: str
) -> None:
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


def test_ctrl_c_ends_one_process_with_a_checkpoint(tmp_path: Path) -> None:
    watched = ("--trainer.callbacks+", "my_ranks.Fails")
    watched += ("--trainer.callbacks.rank=9", "--trainer.callbacks.kind=none")
    process = Ranks(tmp_path, [training(tmp_path, *watched)], ranks=1)
    process.wait_for("iteration 1")
    os.kill(process.pid(0), signal.SIGINT)
    (result,) = ended(process)
    assert result.exit == 130, result
    assert "told to end: wrote" in result.output and "Traceback" not in result.output
    assert (tmp_path / "runs/shapes/checkpoints/last.ckpt").is_file()


def test_a_trainer_that_is_only_built_leaves_the_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    ours = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(ours)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    AEGPOTrainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(SystemExit):  # after it is built
        run(monkeypatch, "fit", *configs(SHAPES), *TWO, "--ckpt_path", "missing.ckpt")
    assert LAUNCHER not in os.environ
    assert not [thread for thread in threading.enumerate() if thread.name == "rank-watch"]
    assert signal.set_wakeup_fd(ours) == ours
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_a_signal_ends_ranks_that_hang(tmp_path: Path) -> None:
    ranks = start(tmp_path, "--trainer.end_within", "3", callback="rank=0 kind=hang")
    ranks.wait_for("iteration 2", 0)
    os.kill(ranks.pid(1), signal.SIGTERM)  # which waits in a collective, and runs no handler
    results = ended(ranks)
    assert [one.exit for one in results] == [143, 143], results
    assert re.search(r"was told to end \(SIGTERM\) and was in \w+ in ", results[1].output)
    assert "rank 1 was told to end (SIGTERM), in " in results[0].output
    assert "Fails.on_train_batch_end (my_ranks.py" in results[0].output  # where it hung


@pytest.mark.parametrize("kind", ["sleeps", "is stopped"])
def test_a_wait_beyond_the_limit_ends_all_and_says_where(tmp_path: Path, kind: str) -> None:
    hangs = kind == "sleeps"
    callback = "rank=1 kind=hang" if hangs else "rank=9 kind=none"
    ranks = start(tmp_path, "--trainer.rank_timeout", "20", callback=callback)
    ranks.wait_for("iteration 2", 1)
    if not hangs:
        os.kill(ranks.pid(1), signal.SIGSTOP)
        ranks.wait_for("waited too long", 0)
        os.kill(ranks.pid(1), signal.SIGCONT)  # nothing else can end a process that is stopped
    results = ended(ranks)
    assert [one.exit for one in results] == [2, 2], results
    said = [line for line in results[0].output.splitlines() if "waited too long" in line]
    assert len(said) == 1 and "raise trainer.rank_timeout" in said[0], results
    assert re.search(r"for the other ranks: \w+ in [\w.]+ \([\w/]+\.py:\d+\)", said[0]), said
    assert "rank 0 failed: waited too long" in results[1].output
    if hangs:
        assert "Fails.on_train_batch_end (my_ranks.py" in results[1].output  # where rank 1 was


def test_what_costs_an_image_or_a_checkpoint_and_no_rank(tmp_path: Path) -> None:
    reward = ("--trainer.limit_val_batches", "0", "--model.max_missing", "0.9")
    reward += ("--model.reward", "my_ranks.Broken", "--model.reward.kind")
    full = ("--trainer.callbacks+", "my_ranks.Fails", "--trainer.callbacks.rank=0")
    full += ("--trainer.callbacks.kind=full",)
    ranks = on_ranks(
        tmp_path,
        training(tmp_path / "raises", *TWO, *reward, "raises", batches=1),
        training(tmp_path / "nan", *TWO, *reward, "nan", batches=1),
        training(tmp_path / "full", *TWO, *full, batches=2),
    )
    outputs = [one.output for one in ranks]
    assert "server away" in outputs[1] and "server away" not in outputs[0], outputs
    rows = [
        json.loads((tmp_path / name / "trace.json").read_text())[0] for name in ("raises", "nan")
    ]
    lost = [math.isnan(score) for _, score in rows[0]["rewards"]]
    assert any(lost) and not all(lost)
    assert str(rows[0]) == str(rows[1])  # NaN is not itself
    assert "last.ckpt could not be written" in outputs[0], outputs[0]
    assert not list((tmp_path / "full").rglob("*.ckpt*"))
    assert "could not be written" not in outputs[1]
    assert (tmp_path / "full/trace.json").is_file()
