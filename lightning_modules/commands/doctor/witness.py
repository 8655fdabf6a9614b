"""Inside a run of ``aegpo doctor --resume``: writes down all that it does, and kills it on time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

_SAVING = "checkpoint"


class Witness(L.Callback):
    """Notes what a run passes, logs and saves, and strikes at one of the passed places.

    A place is a call of the policy (its phase is who pays for it: rollout, probe, update,
    validation), a write of a checkpoint's bytes or the moment before and after it gets its name,
    or a row that is logged. They are numbered by iteration and phase, so a place is the same one
    in every run of the same training. Each rank has its own file of notes, a line of JSON each.

    Args:
        folder: Where the notes go.
        strike: Rank, iteration, phase and number of the place at which all processes of the run
            get SIGKILL; None for none.
    """

    def __init__(self, folder: str, strike: list[int | str] | None = None) -> None:
        self.folder = Path(folder)
        self.strike = strike
        self._rank = 0
        self._passed: Counter[tuple[int, str]] = Counter()
        self._bytes = 0
        self._module: Any = None
        self._restore: list[tuple[Any, str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch what is logged and what is written."""
        if not hasattr(pl_module, "iteration"):
            raise ValueError(
                f"doctor --resume counts a policy's iterations, and {type(pl_module).__name__} has "
                "none; give the config of a training of a policy"
            )
        self._rank, self._module = trainer.global_rank, pl_module
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer.loggers = [*trainer.loggers, NotedRows(self)]
        self._put(torch, "save", self._watched_save(torch.save))
        self._put(os, "replace", self._watched_replace(os.replace))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch the policy, which is built by now."""
        counter: Any = pl_module.policy.evaluations  # type: ignore[union-attr]
        add = counter.add

        def watched_add(evaluations: int) -> None:
            add(evaluations)
            self.reach(counter.purpose)

        self._put(counter, "add", watched_add)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the run begins, and from what."""
        source = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        digest = None if source is None else file_digest(source)
        self.note(began=self._iteration(), checkpoint=source, digest=digest)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where it ends, and with which weights on this rank."""
        digest = hashlib.blake2b(digest_size=16)
        weights = pl_module.policy.trainable_state_dict()  # type: ignore[union-attr,operator]
        for name, tensor in sorted(weights.items()):
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode() + raw.numpy().tobytes())
        self.note(ended=self._iteration(), weights=digest.hexdigest())

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave everything as it was."""
        while self._restore:
            owner, name, value = self._restore.pop()
            setattr(owner, name, value)

    def note(self, **facts: Any) -> None:
        """Append a line; it outlives the process, if not the machine."""
        with (self.folder / f"rank_{self._rank}.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def reach(self, phase: str, **facts: Any) -> None:
        """Pass the next place of a phase, or die there."""
        place = (self._iteration(), phase)
        self._passed[place] += 1
        facts |= {"reached": [*place, self._passed[place]], "at": time.monotonic()}
        if self.strike == [self._rank, *facts["reached"]]:
            self.note(**facts, struck=True)
            os.killpg(os.getpgrp(), signal.SIGKILL)
        self.note(**facts)

    def _iteration(self) -> int:
        return int(self._module.iteration)

    def _put(self, owner: Any, name: str, value: Any) -> None:
        self._restore.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _watched_save(self, save: Any) -> Any:
        def watched(content: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            self._bytes = 0
            file = WatchedFile(target, self) if hasattr(target, "write") else target
            save(content, file, *args, **kwargs)

        return watched

    def wrote(self, size: int) -> None:
        """Pass the place after a write to a checkpoint."""
        self._bytes += size
        self.reach(_SAVING, bytes=self._bytes)

    def _watched_replace(self, replace: Any) -> Any:
        def watched(source: Any, target: Any, **kwargs: Any) -> None:
            if not str(target).endswith(".ckpt"):
                replace(source, target, **kwargs)
                return
            name = Path(target).name
            self.reach(_SAVING, file=name, stage="written, not yet renamed")
            replace(source, target, **kwargs)
            self.note(saved=str(target), iteration=self._iteration(), digest=file_digest(target))
            self.reach(_SAVING, file=name, stage="renamed")

        return watched


class WatchedFile:
    """A file of a checkpoint, whose writes are places to strike at.

    Args:
        file: The file, or anything else to write to.
        witness: Who is told of every write.
    """

    def __init__(self, file: Any, witness: Witness) -> None:
        self._file, self._witness = file, witness

    def write(self, content: Any) -> int:
        """Write, so that the bytes are in the file's own place, and say so."""
        size = int(self._file.write(content))
        self._file.flush()
        self._witness.wrote(size)
        return size

    def __getattr__(self, name: str) -> Any:
        """Everything else is the file's."""
        return getattr(self._file, name)


class NotedRows(Logger):
    """A logger that hands every row to a witness, with all bits of its numbers.

    Args:
        witness: Who notes it.
    """

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self.witness = witness

    @property
    def name(self) -> str:
        """It has no folder."""
        return "witness"

    @property
    def version(self) -> str:
        """It has no folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are the config's."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Note a row."""
        row = {name: float(value).hex() for name, value in metrics.items()}
        self.witness.note(step=step, row=row)
        self.witness.reach("log")


def file_digest(path: str | Path) -> str:
    """A name for the content of a file."""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
