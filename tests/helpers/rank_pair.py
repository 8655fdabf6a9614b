"""The command line on several ranks: real processes and a real group, as cheap as they can be.

All ranks are forked from one warm server that has imported what a run needs, which takes each of
them ten seconds otherwise. Ranks run a list of commands one after another in one process group, as
torchrun's would run one: Lightning starts no process where it finds LOCAL_RANK.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cli_runs import ROOT, configs
from forkserver import begin, forkserver
from free_port import free_port

Command = tuple[Path, Sequence[str]]
"""The folder in which it is run, and its arguments."""

Launcher = Literal["lightning", "torchrun", "srun"]
"""Whose environment variables tell a rank which it is."""

SHAPES = ROOT / "configs/shapes.yaml"
SMALL = """
trainer:
  max_epochs: 1
  check_val_every_n_epoch: 1
  rank_timeout: 120
  without_callbacks+: [RolloutProgressBar]   # its lines are most of what a rank prints
  callbacks+:
    - class_path: rank_trace.RankTrace
      init_args: {file: trace.json}
model:
  init_args:
    num_steps: 5
    micro_batch_size: 7
    optimizer: {init_args: {eps: 1.0e-3}}   # or Adam makes whole steps of a gradient's rounding
data:
  init_args:
    batch_size: 4
    batches_per_epoch: 2
    val_images: 5           # in batches of 4 and 1: the second rank has none of the last
    val_batch_size: 4
"""
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@dataclass(frozen=True)
class Ended:
    """How one rank ended.

    Attributes:
        status: Status of each command that it ran, as a shell would have it.
        exit: The process's own status, negative for a signal.
        output: What it printed, both streams.
    """

    status: list[int]
    exit: int | None
    output: str


def fit(folder: Path, *options: str, files: tuple[Path, ...] = (SHAPES,)) -> Command:
    """A small run of some configs; its numbers and tensors are in the folder's trace.json."""
    folder.mkdir(exist_ok=True)
    small = folder / "small.yaml"
    small.write_text(SMALL)
    return folder, ["fit", *configs(*files, small), *options]


class Ranks:
    """Some ranks that run commands; started at once, waited for by `ended`."""

    def __init__(
        self,
        folder: Path,
        commands: Sequence[Command],
        ranks: int = 2,
        launcher: Launcher = "lightning",
    ) -> None:
        context = forkserver()
        port = free_port()
        self.outputs = [folder / f"rank{rank}of{ranks}.{port}.txt" for rank in range(ranks)]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        listed = [(str(where), [*arguments]) for where, arguments in commands]
        self.processes = [
            context.Process(
                target=_rank,
                args=(
                    listed,
                    environment | (launched(launcher, rank, ranks, port) if ranks > 1 else {}),
                    self.outputs[rank],
                ),
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def pid(self, rank: int) -> int:
        """Process of a rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def wait_for(self, text: str, rank: int = 0, seconds: float = 120) -> None:
        """Wait until a rank has printed something."""
        limit = time.monotonic() + seconds
        while text not in self.read(rank):
            alive = self.processes[rank].is_alive()
            assert alive or text in self.read(rank), self.read(rank)
            assert time.monotonic() < limit, f"no {text!r} in: {self.read(rank)}"
            time.sleep(0.05)

    def read(self, rank: int) -> str:
        """What a rank has printed so far."""
        file = self.outputs[rank]
        return file.read_text(errors="replace") if file.exists() else ""

    def ended(self, seconds: float = 240) -> list[Ended]:
        """Wait for all ranks; those that are still there after `seconds` fail the test."""
        limit = time.monotonic() + seconds
        try:
            for process in self.processes:
                process.join(max(0.0, limit - time.monotonic()))
            alive = [process.is_alive() for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        results = []
        for process, file in zip(self.processes, self.outputs, strict=True):
            status = file.with_suffix(".json")
            statuses = json.loads(status.read_text()) if status.exists() else []
            results.append(Ended(statuses, process.exitcode, file.read_text(errors="replace")))
        assert not any(alive), f"still there after {seconds} s: {alive}\n" + "\n".join(
            one.output[-3000:] for one in results
        )
        return results


def on_ranks(
    folder: Path,
    *commands: Command,
    ranks: int = 2,
    seconds: float = 300,
    launcher: Launcher = "lightning",
) -> list[Ended]:
    """Run commands on several ranks, or on one, in one process each; all have to end well.

    Args:
        folder: Where their outputs go.
        *commands: The commands.
        ranks: Processes.
        seconds: When they are given up.
        launcher: Whose variables they find.

    Returns:
        How each ended.
    """
    ended = Ranks(folder, commands, ranks, launcher).ended(seconds)
    for one in ended:
        assert one.status == [0] * len(commands), one.output[-6000:]
    return ended


def launched(launcher: Launcher, rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that a launcher gives to one of the ranks of this machine."""
    number, all_of_them = str(rank), str(ranks)
    if launcher == "srun":  # of slurm.schedmd.com/srun.html; the address is that of the first node
        return {
            "MASTER_PORT": str(port),  # or it comes from the job's number
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "train",
            "SLURM_NNODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_NODELIST": "localhost",
            "SLURM_NTASKS": all_of_them,
            "SLURM_NTASKS_PER_NODE": all_of_them,
            "SLURM_PROCID": number,
            "SLURM_LOCALID": number,
        }
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": number}
    found |= {"WORLD_SIZE": all_of_them}
    if launcher == "lightning":
        return found | {"NODE_RANK": "0"}
    return found | {
        "RANK": number,
        "LOCAL_WORLD_SIZE": all_of_them,
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _rank(  # what a process is started with
    commands: list[tuple[str, list[str]]], environment: dict[str, str], output: Path
) -> None:
    """One rank, from its first line to its last."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin(environment, output)
    status = _run_all(commands, output)
    sys.stdout.flush()
    os._exit(status)


def _run_all(commands: list[tuple[str, list[str]]], output: Path) -> int:
    """Run commands until one fails; the status of the last."""
    statuses: list[int] = []
    for where, command in commands:
        os.makedirs(where, exist_ok=True)
        os.chdir(where)
        sys.path.insert(0, where)
        statuses.append(_status(command))
        output.with_suffix(".json").write_text(json.dumps(statuses))
        if statuses[-1] != 0:
            break
    return statuses[-1]


def _status(command: list[str]) -> int:
    """The status of one command of the program."""
    from lightning_modules.cli import main as entry

    sys.argv = ["aegpo", *command]
    try:
        entry.main()
    except SystemExit as end:
        code: Any = end.code
        return code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
