"""One run of a comparison: its config, its folder and what is known of it from before."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from aegpo.utilities.files import replacing
from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.configured_run import left_callbacks
from lightning_modules.commands.end_with_parent import end_with_parent

_STATE = "run.json"
_OF_FIT = ("config", "ckpt_path", "weights_only", "run_name")
"""Arguments of `fit` that belong to no run that is compared."""
_LOGGERS = ("TensorBoardLogger", "CSVLogger")


class Process(Protocol):
    """What the scheduler needs of a started run; `subprocess.Popen` has it."""

    def poll(self) -> int | None:
        """Exit status, None while it runs."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Wait for its end."""


@dataclass(frozen=True)
class ComparedRun:
    """One method with one seed.

    Args:
        method: Name of the method.
        seed: The run's `seed_everything`.
        folder: Where everything of the run lies.
        config: The resolved config; paths inside `folder` start with `{folder}`.
    """

    method: str
    seed: int
    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Method and seed, for messages."""
        return f"{self.method}, seed {self.seed}"

    @property
    def config_hash(self) -> str:
        """Name of the resolved config; another value anywhere is another name."""
        text = json.dumps(self.config, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def output(self) -> Path:
        """File with everything that the run's processes printed."""
        return self.folder / "output.txt"

    def state(self) -> dict[str, Any]:
        """What `mark` wrote last; empty if the run was never started."""
        return _state(self.folder)

    def mark(self, done: bool) -> None:
        """Note, in one indivisible write, that the run was started or is finished.

        Args:
            done: Whether it is finished.
        """
        state = {
            "method": self.method,
            "seed": self.seed,
            "done": done,
            "config_hash": self.config_hash,
            "config": self.config,
        }
        with replacing(self.folder / _STATE) as partial:
            partial.write_text(json.dumps(state, indent=1) + "\n")

    def is_done(self) -> bool:
        """Whether this very config was run to its end before."""
        state = self.state()
        return bool(state.get("done")) and state.get("config_hash") == self.config_hash

    def prepare(self) -> bool:
        """Get the folder ready for a start.

        A run of another config is moved to `superseded/` beside it; one without a checkpoint to go
        on from starts again in an empty folder.

        Returns:
            Whether the run continues from its checkpoint.
        """
        state = self.state()
        if state and state["config_hash"] != self.config_hash:
            old = self.folder.parents[1] / "superseded" / self.method
            old.mkdir(parents=True, exist_ok=True)
            target = old / f"{self.folder.name}-{state['config_hash']}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(self.folder, target)
            state = {}
        # A CSVLogger starts its file anew and would lose what came before the interruption.
        logger = self.config["trainer"]["logger"]["class_path"]
        resumes = (
            bool(state)
            and (self.folder / "checkpoints/last.ckpt").is_file()
            and not logger.endswith("CSVLogger")
        )
        if not resumes:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        (self.folder / "resolved.yaml").write_text(
            yaml.safe_dump(_filled(self.config, str(self.folder)), sort_keys=False)
        )
        self.mark(done=False)
        return resumes


def compared_method(folder: Path) -> str | None:
    """Say which method of a comparison a run is.

    Args:
        folder: Its log folder.

    Returns:
        The method's name; None for a run that `aegpo compare` did not start.
    """
    try:
        method = _state(folder).get("method")
    except (OSError, ValueError, AttributeError):  # a file of the user's
        return None
    return method if isinstance(method, str) else None


def _state(folder: Path) -> dict[str, Any]:
    file = folder / _STATE
    state: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return state


def compared_config(
    resolved: Mapping[str, Any], seed: int, budget: int, every: Mapping[str, int]
) -> dict[str, Any]:
    """Change a method's resolved config into that of one compared run.

    Seed, budget and places of the files are the comparison's; progress bars and checkpoints of the
    config are replaced, everything else is the method's own.

    Args:
        resolved: What the method's files come to.
        seed: Seed of the run.
        budget: Model evaluations of the run.
        every: `{"evaluations": n}` or `{"epochs": n}` between two held-out evaluations.

    Returns:
        The config; `{folder}` stands for the run's folder.

    Raises:
        UserError: If the config fixes a seed, so that all seeds would be the same run.
    """
    config = copy.deepcopy(dict(resolved))
    for section in ("model", "data"):
        fixed = ((config.get(section) or {}).get("init_args") or {}).get("seed")
        if fixed is not None:
            raise UserError(
                f"{section}.init_args.seed={fixed} makes all seeds of the comparison the same run; "
                "leave it at null"
            )
    config = {k: v for k, v in config.items() if k not in _OF_FIT}
    config["seed_everything"] = seed
    trainer = config["trainer"]
    callbacks = [
        callback
        for callback in left_callbacks(trainer)
        if not callback["class_path"].endswith(("Checkpoint", "ProgressBar", "BudgetStop"))
    ]
    if not any(callback["class_path"].endswith("CostLogger") for callback in callbacks):
        callbacks.append({"class_path": "callbacks.CostLogger"})
    if "evaluations" in every:
        callbacks.append(_callback("EvaluateByCost", evaluations=every["evaluations"]))
    callbacks.append(_callback("BudgetStop", evaluations=budget))
    callbacks.append(_callback("RolloutCheckpoint", dirpath="{folder}/checkpoints"))
    logger = trainer["logger"]["class_path"] if isinstance(trainer["logger"], dict) else ""
    if not logger.endswith(_LOGGERS):
        logger = "lightning.pytorch.loggers.TensorBoardLogger"
    trainer |= {
        "logger": {
            "class_path": logger,
            "init_args": {"save_dir": "{folder}", "name": "", "version": ""},
        },
        "callbacks": callbacks,
        "without_callbacks": None,
        "max_epochs": -1,
        "max_steps": -1,
        "max_time": None,
        "num_sanity_val_steps": -1,  # the score at no cost, where every curve starts
        "check_val_every_n_epoch": every.get("epochs", 1),
        "val_check_interval": None,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_checkpointing": True,
    }
    return config


def start(run: ComparedRun, resume: bool, alone: bool) -> Process:
    """Start a run as a process of the same program.

    Args:
        run: The run, prepared.
        resume: Whether it continues from its checkpoint.
        alone: Whether nothing runs beside it; otherwise it gets one thread.

    Returns:
        The process.
    """
    command = [sys.executable, "-m", "aegpo", "fit", "--config", str(run.folder / "resolved.yaml")]
    command += ["--ckpt_path", "last"] if resume else []
    threads = {} if alone else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with run.output.open("a") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **threads},
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )


def _callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"callbacks.{name}", "init_args": arguments}


def _filled(config: Any, folder: str) -> Any:
    if isinstance(config, dict):
        return {key: _filled(value, folder) for key, value in config.items()}
    if isinstance(config, list):
        return [_filled(value, folder) for value in config]
    return config.replace("{folder}", folder) if isinstance(config, str) else config
