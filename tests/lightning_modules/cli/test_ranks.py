"""What ends one of several ranks ends them all: real processes, real signals, real deaths."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from cli_runs import ROOT, configs, run
from forked_runs import start_forked
from killed_runs import write_config
from rank_pair import SHAPES, TWO, Command, Ended, Launcher, Ranks, on_ranks

from lightning_modules.cli.ranks.watch import LAUNCHER
from lightning_modules.cli.trainer import AEGPOTrainer
from lightning_modules.commands.run_logs import read_scalars

MODULE = """
import os
import resource
import time
from pathlib import Path

import lightning as L
from aegpo.distributed import world
from my_module import Redness

FULL = 8_000  # bytes of a file, more than a rank prints and less than a picture


class Fails(L.Callback):
    def __init__(self, rank: int, kind: str):
        self.rank, self.kind = rank, kind

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.kind == "full":  # a column with which the table is longer than what a rank prints
            pl_module.log("x" * FULL, 0.0)
        print(f"rank {world()[1]} in {os.getpid()}: iteration {pl_module.iteration}.", flush=True)
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
        if self.kind == "decisions":
            with next(Path().rglob("decisions.jsonl")).open("a") as log:
                log.write(" " * FULL)
        if self.kind in ("full", "decisions"):  # as a disk is: in the middle of the writing
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))

    def on_train_end(self, trainer, pl_module):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


class Broken(Redness):
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


LOGGERS = """
trainer:
  logger:
    - class_path: lightning.pytorch.loggers.TensorBoardLogger
      init_args: {save_dir: runs, name: tiny, version: ""}
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: runs, name: table, version: "", flush_logs_every_n_steps: 1}
"""


def training(folder: Path, pipeline: Path, *options: str, batches: int = 60) -> Command:
    """A small training, which goes on for long by default."""
    folder.mkdir(exist_ok=True)
    config = write_config(folder, pipeline)
    (folder / "my_ranks.py").write_text(MODULE)
    once = ["--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0"]
    once += ["--trainer.without_callbacks+", "RolloutProgressBar"]  # most of what a rank prints
    size = ["--data.batches_per_epoch", str(batches)]
    return folder, ["fit", "--config", str(config), *once, *size, *options]


def added(callback: str) -> list[str]:
    """Options that add one of the module's callbacks, with arguments in words."""
    arguments = [f"--trainer.callbacks.{part}" for part in callback.split()]
    return ["--trainer.callbacks+", "my_ranks.Fails", *arguments]


def start(folder: Path, pipeline: Path, callback: str, *options: str) -> Ranks:
    """Two ranks of a training that goes on for long."""
    return Ranks(folder, [training(folder, pipeline, *TWO, *added(callback), *options)])


@pytest.fixture(scope="module")
def spent_alone(
    tmp_path_factory: pytest.TempPathFactory, tiny_sd3_folder: Path
) -> dict[str, float]:
    """What one process counts in one iteration."""
    folder = tmp_path_factory.mktemp("alone")
    on_ranks(folder, training(folder, tiny_sd3_folder, batches=1), ranks=1)
    saved = torch.load(folder / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    return saved["aegpo"]["evaluations"]


@pytest.mark.parametrize(
    ("launcher", "commands"), [("torchrun", ("fit", "export")), ("srun", ("doctor", "fit"))]
)
def test_ranks_that_a_launcher_started(
    tmp_path: Path,
    tiny_sd3_folder: Path,
    spent_alone: dict[str, float],
    launcher: Launcher,
    commands: tuple[str, ...],
) -> None:
    """By the variables that it sets: one group trains, and rank 0 alone does what one does."""
    folder, fit = training(tmp_path / "run", tiny_sd3_folder, *TWO, batches=1)
    own = {"export": ["--ckpt_path", "last", "--out", "exported"]}
    typed = [(folder, [command, *fit[1:], *own.get(command, [])]) for command in commands]
    on_two = on_ranks(tmp_path, *typed, launcher=launcher)
    (alone,) = set(commands) - {"fit"}
    said = f"{alone} runs on one process; rank 1 leaves it to rank 0"
    assert [said in one.output for one in on_two] == [False, True], on_two
    if alone == "export":
        assert (folder / "exported/pytorch_lora_weights.safetensors").is_file(), on_two
    assert len((folder / "runs/tiny/decisions.jsonl").read_text().splitlines()) == 1
    saved = torch.load(folder / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert saved["aegpo"]["evaluations"] == spent_alone  # the sum over both


def ended(ranks: Ranks, within: float = 180) -> list[Ended]:
    """Wait, and check that no rank took longer than it may."""
    return ranks.ended(within)


@pytest.mark.parametrize(
    ("callback", "line"),
    [
        ("rank=1 kind=memory", "out of memory"),
        ("rank=0 kind=decisions", "File too large"),
        ("rank=1 kind=exit", "ended without a word"),
        ("rank=0 kind=exit", "ended without a word"),
    ],
    ids=["no memory on rank 1", "no room for decisions", "rank 1 is gone", "rank 0 is gone"],
)
def test_a_rank_that_fails_takes_the_others_with_it(
    tmp_path: Path, tiny_sd3_folder: Path, callback: str, line: str
) -> None:
    failing = int(callback[5])
    ranks = start(tmp_path, tiny_sd3_folder, callback)
    ranks.wait_for("iteration 2.", failing)
    results = ended(ranks)
    assert all(one.exit not in (0, None) for one in results), results
    told = [text for text in results[1 - failing].output.splitlines() if f"rank {failing} " in text]
    assert len(told) == 1 and line in told[0] and " was in " in told[0], results
    if line[0] != "e":
        assert f"error: {line}" in results[failing].output or line in results[failing].output
        assert "Traceback" not in results[failing].output


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGTERM, (1,)), (signal.SIGINT, (0, 1))],
    ids=["SIGTERM to rank 1", "Ctrl-C to both"],
)
def test_a_signal_ends_all_ranks_with_a_checkpoint(
    tmp_path: Path, tiny_sd3_folder: Path, number: signal.Signals, told: tuple[int, ...]
) -> None:
    # A busy machine takes long for an iteration, which is not what is tested.
    patient = ("--trainer.end_within", "150")
    ranks = start(tmp_path, tiny_sd3_folder, "rank=9 kind=none", *patient)
    ranks.wait_for("iteration 1.")
    for rank in told:
        os.kill(ranks.pid(rank), number)
    results = ended(ranks)
    assert [one.exit for one in results] == [128 + number] * 2, results
    assert "told to end: wrote" in results[0].output
    assert (tmp_path / "runs/tiny/checkpoints/last.ckpt").is_file()


def test_ctrl_c_ends_one_process_with_a_checkpoint(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    watched = added("rank=9 kind=none")
    process = Ranks(tmp_path, [training(tmp_path, tiny_sd3_folder, *watched)], ranks=1)
    process.wait_for("iteration 1.")
    os.kill(process.pid(0), signal.SIGINT)
    (result,) = ended(process)
    assert result.exit == 130, result
    assert "told to end: wrote" in result.output and "Traceback" not in result.output
    assert (tmp_path / "runs/tiny/checkpoints/last.ckpt").is_file()


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


def test_a_signal_ends_ranks_that_hang_or_were_stopped(
    folder: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 hangs and is stopped as well; rank 0, which started it, wakes it to end it."""
    program = folder / "program.py"  # Lightning starts the other ranks with the script's own path
    program.write_text("from lightning_modules.cli.main import main\n\nmain()\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = (*TWO, *added("rank=1 kind=hang"), "--trainer.end_within", "3")
    _, arguments = training(folder, tiny_sd3_folder, *options)
    output = folder / "output.txt"
    rank_0 = start_forked(arguments, output, str(program))
    try:
        (pid,) = wait_for(r"rank 1 in (\d+): iteration 2\.", output).groups()
        os.kill(int(pid), signal.SIGSTOP)
        os.kill(rank_0.pid, signal.SIGTERM)  # which waits in a collective, and runs no handler
        assert rank_0.wait(120) == 143
        wait_for(r"rank 0 ends with status 143: .* was told to end \(SIGTERM\) and was in ", output)
        woken = r"rank 1 ends with status 143: rank 0 was told to end \(SIGTERM\), in .*"
        where = wait_for(woken, output).group()  # it says so before it is gone
        assert "Fails.on_train_batch_end (my_ranks.py" in where
    finally:
        os.killpg(rank_0.pid, signal.SIGKILL)


def test_a_wait_beyond_the_limit_ends_all_and_says_where(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    limit = ("--trainer.rank_timeout", "20")
    ranks = start(tmp_path, tiny_sd3_folder, "rank=1 kind=hang", *limit)
    results = ended(ranks)
    assert [one.exit for one in results] == [2, 2], results
    said = [line for line in results[0].output.splitlines() if "waited too long" in line]
    assert len(said) == 1 and "raise trainer.rank_timeout" in said[0], results
    assert re.search(r"for the other ranks: \w+ in [\w.]+ \([\w/]+\.py:\d+\)", said[0]), said
    assert "rank 0 failed: waited too long" in results[1].output
    assert "Fails.on_train_batch_end (my_ranks.py" in results[1].output  # where rank 1 was


def wait_for(pattern: str, file: Path, seconds: float = 120.0) -> re.Match[str]:
    """Wait until a file has a text."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        text = file.read_text(errors="replace") if file.is_file() else ""
        found = re.search(pattern, text)
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {pattern!r} in: {text}")


def test_what_costs_an_image_or_a_file_and_no_rank(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    trace = ("--trainer.callbacks+", "rank_trace.RankTrace", "--trainer.callbacks.file=trace.json")
    reward = (*trace, "--trainer.limit_val_batches", "0", "--model.max_missing", "0.9")
    reward += ("--model.reward", "my_ranks.Broken", "--model.reward.kind")
    (tmp_path / "loggers.yaml").write_text(LOGGERS)
    full = (*added("rank=0 kind=full"), *trace, "--config", str(tmp_path / "loggers.yaml"))
    full += ("--trainer.without_callbacks+", "DecisionLog")
    full += ("--trainer.log_every_n_steps", "1", "--trainer.check_val_every_n_epoch", "1")
    pipeline = tiny_sd3_folder
    ranks = on_ranks(
        tmp_path,
        training(tmp_path / "raises", pipeline, *TWO, *reward, "raises", batches=1),
        training(tmp_path / "nan", pipeline, *TWO, *reward, "nan", batches=1),
        training(tmp_path / "full", pipeline, *TWO, *full, batches=3),
    )
    outputs = [one.output for one in ranks]
    assert "server away" in outputs[1] and "server away" not in outputs[0], outputs
    rows = [
        json.loads((tmp_path / name / "trace.json").read_text())[0] for name in ("raises", "nan")
    ]
    lost = [math.isnan(score) for _, score in rows[0]["rewards"]]
    assert any(lost) and not all(lost)
    assert str(rows[0]) == str(rows[1])  # NaN is not itself
    refused = [line for line in outputs[0].splitlines() if "could not be written" in line]
    for file in ("last.ckpt", "tfevents", "metrics.csv", "held_out"):  # each once
        assert len([line for line in refused if file in line]) == 1, outputs[0]
    assert not list((tmp_path / "full").rglob("*.partial"))
    assert "could not be written" not in outputs[1]
    assert (tmp_path / "full/trace.json").is_file()  # the run went on
    table = read_scalars(tmp_path / "full/runs/table", ["reward/mean"])
    assert sorted(table["reward/mean"]) == [1, 2, 3]  # what was kept is written in the end
