"""A run that is killed and goes on: its config, its processes and what its witness noted."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.configured_run import left_callbacks
from lightning_modules.commands.end_with_parent import end_with_parent

ITERATIONS_AN_EPOCH = 2
_LOGGERS = ("TensorBoardLogger", "CSVLogger")
_FACTS = ("bytes", "file", "stage")
_WITNESS = "lightning_modules.commands.doctor.witness.Witness"


@dataclass(frozen=True)
class Place:
    """Where a run can be struck: the same place in every run of one training.

    Args:
        rank: Whose place it is.
        iteration: Iterations done there.
        phase: What the run is at.
        number: Which of the phase's places in this iteration, from 1.
        facts: What else is known of it.
    """

    rank: int
    iteration: int
    phase: str
    number: int
    facts: Mapping[str, Any]

    def words(self, processes: int) -> str:
        """Say it in a cell of a table."""
        who = f"rank {self.rank}, " if processes > 1 else ""
        if self.phase in ("checkpoint", "validation", "log"):
            when = f"after iteration {self.iteration}"
        else:
            when = f"in iteration {self.iteration + 1}"
        if "stage" in self.facts:
            what = f"{self.facts['file']} {self.facts['stage']}"
        elif "bytes" in self.facts:
            what = f"{self.facts['bytes']:,} bytes of a checkpoint written"
        else:
            what = f"{self.phase}, call {self.number}"
        return f"{who}{when}: {what}"


class Process(Protocol):
    """What is needed of a started run, the leader of a process group; `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None:
        """Exit status, None while it runs."""

    def wait(self) -> int:
        """Wait for its end."""


Start = Callable[[list[str], Path], Process]
"""Starts ``aegpo`` with arguments in a process group of its own; it prints into a file."""


def start(arguments: list[str], output: Path) -> Process:
    """Start this program anew."""
    with output.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "aegpo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )


class KilledRun:
    """A training in a folder of its own, started as often as it is killed.

    Args:
        folder: Its folder.
        config: What `short_config` returned.
        patience: Seconds without a sign of life after which a process counts as hung.
        start_process: Starts a process of this program.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        patience: float = 900.0,
        start_process: Start = start,
    ) -> None:
        self.folder, self.config = folder, config
        self.patience, self.start_process = patience, start_process
        self.lives = 0

    def live(self, strike: Place | None = None) -> Path:
        """Start or go on, until the end or until it is struck.

        Args:
            strike: Where it is killed; None for nowhere.

        Returns:
            The folder of this life's notes.

        Raises:
            UserError: If it ends in another way than it should.
        """
        notes = self.folder / "notes" / f"{self.lives:03d}"
        notes.mkdir(parents=True)
        place = None if strike is None else _key(strike)
        config = copy.deepcopy(dict(self.config))
        config["trainer"]["callbacks"].insert(
            0, {"class_path": _WITNESS, "init_args": {"folder": str(notes), "strike": place}}
        )
        file = self.folder / "resolved.yaml"
        file.write_text(yaml.safe_dump(_in_folder(config, str(self.folder)), sort_keys=False))
        arguments = ["fit", "--config", str(file)]
        arguments += ["--ckpt_path", "last"] if self.lives else []
        self.lives += 1
        output = notes / "output.txt"
        process = self.start_process(arguments, output)
        try:
            status = self._wait(process, notes)
        finally:
            end_group(process)
        expected = 0 if strike is None else -signal.SIGKILL
        if status != expected:
            lines = output.read_text(errors="replace").strip().splitlines()
            raise UserError(
                f"a run ended with status {status} in place of {expected}: "
                f"{lines[-1] if lines else 'it said nothing'} (all of it: {output})"
            )
        return notes

    def _wait(self, process: Process, notes: Path) -> int:
        seen, since = -1.0, time.monotonic()
        while (status := process.poll()) is None:
            latest = max((file.stat().st_mtime for file in notes.iterdir()), default=0.0)
            if latest != seen:
                seen, since = latest, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise UserError(
                    f"a run gave no sign of life for {self.patience:.0f} s; what it said is in "
                    f"{notes / 'output.txt'}"
                )
            time.sleep(0.1)
        return status


def end_group(process: Process) -> None:
    """End what is left of a run, and wait for its first process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_notes(notes: Path) -> dict[int, list[dict[str, Any]]]:
    """Read what the witnesses of one life noted, by rank.

    Args:
        notes: What `KilledRun.live` returned.

    Returns:
        The notes in their order; a last line that the kill cut short is left out.
    """
    return {
        int(file.stem.removeprefix("rank_")): [
            json.loads(line) for line in file.read_text().split("\n")[:-1]
        ]
        for file in sorted(notes.glob("rank_*.jsonl"))
    }


def places(notes: Mapping[int, list[dict[str, Any]]]) -> Iterator[Place]:
    """The places that all ranks passed, in the order of time."""
    reached = [
        (note["at"], rank, note) for rank, lines in notes.items() for note in lines if "at" in note
    ]
    for _, rank, note in sorted(reached, key=lambda one: one[:2]):
        iteration, phase, number = note["reached"]
        facts: dict[str, Any] = {name: note[name] for name in _FACTS if name in note}
        yield Place(rank, iteration, phase, number, facts)


def short_config(
    resolved: Mapping[str, Any], iterations: int, processes: int | None
) -> dict[str, Any]:
    """Make a config short, and have all that it writes go to ``{folder}``.

    Args:
        resolved: A config of `fit` with every default written out.
        iterations: Iterations of the run, two an epoch, and a checkpoint after each epoch.
        processes: Processes that share the training; None for those of the config.

    Returns:
        The config; `{folder}` stands for the run's folder.
    """
    config = copy.deepcopy(dict(resolved))
    config = {
        k: v
        for k, v in config.items()
        if k not in ("config", "ckpt_path", "weights_only", "run_name")
    }
    trainer = config["trainer"]
    # Another number of threads sums in another order: one that changes by itself is left out.
    kept = [one for one in left_callbacks(trainer) if not one["class_path"].endswith("FreeCores")]
    callbacks = [_moved(callback) for callback in kept]
    if not any(one["class_path"].endswith("RolloutCheckpoint") for one in callbacks):
        callbacks.append(_moved({"class_path": "callbacks.RolloutCheckpoint"}))
    logger = trainer["logger"]["class_path"] if isinstance(trainer["logger"], dict) else ""
    if not logger.endswith(_LOGGERS):
        logger = "lightning.pytorch.loggers.TensorBoardLogger"
    trainer |= {
        "default_root_dir": "{folder}",
        "logger": {
            "class_path": logger,
            "init_args": {"save_dir": "{folder}", "name": "log", "version": ""},
        },
        "callbacks": callbacks,
        "without_callbacks": None,
        "max_epochs": -(-iterations // ITERATIONS_AN_EPOCH),
        "max_steps": -1,
        "max_time": None,
        "limit_train_batches": ITERATIONS_AN_EPOCH,
        "limit_val_batches": 0 if trainer["limit_val_batches"] == 0 else 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": True,
    }
    if (trainer["check_val_every_n_epoch"] or 1) > 1:
        trainer["check_val_every_n_epoch"] = 2
    if processes is not None:
        trainer["devices"], trainer["num_nodes"] = processes, 1
        if processes > 1 and trainer["strategy"] == "auto":
            trainer["strategy"] = "ddp"
    return config


def _moved(callback: Mapping[str, Any]) -> dict[str, Any]:
    """A callback that writes into the run's folder, and checkpoints after each epoch."""
    arguments = dict(callback.get("init_args") or {})
    if callback["class_path"].endswith("Checkpoint"):
        arguments["dirpath"] = "{folder}/checkpoints"
        if callback["class_path"].endswith("RolloutCheckpoint"):
            arguments["every_n_epochs"] = 1
    return {"class_path": callback["class_path"], "init_args": arguments}


def _key(place: Place) -> list[int | str]:
    return [place.rank, place.iteration, place.phase, place.number]


def _in_folder(config: Any, folder: str) -> Any:
    if isinstance(config, dict):
        return {key: _in_folder(value, folder) for key, value in config.items()}
    if isinstance(config, list):
        return [_in_folder(value, folder) for value in config]
    return config.replace("{folder}", folder) if isinstance(config, str) else config
