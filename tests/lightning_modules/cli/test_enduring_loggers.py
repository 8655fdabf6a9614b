"""A disk that fills up in the middle of a run costs points of its logs, and nothing else."""

from __future__ import annotations

import resource
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from tiny_training import tiny_data, tiny_module

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from callbacks.sample_logger import SampleLogger
from lightning_modules.cli.enduring_loggers import enduring
from lightning_modules.cli.trainer import AEGPOTrainer
from lightning_modules.commands.run_logs import read_scalars


class FullDisk(L.Callback):
    """From iteration 2 to 5 the system refuses what a file writes beyond a size."""

    def __init__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        # In the middle of a record, then of a row.
        name = {2: "events*", 3: "metrics.csv"}.get(pl_module.iteration)
        if name is not None:
            (log,) = Path(trainer.default_root_dir).rglob(name)
            size = log.stat().st_size + 30
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.iteration == 6:
            self.lift()

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class Extra(L.Callback):
    """Logs what nobody logged before: a new column, for which the table is written anew."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.iteration in (1, 5):
            pl_module.log(f"reward/extra{pl_module.iteration}", 1.0)


def train(folder: Path, pipeline: Path, *callbacks: L.Callback) -> dict[str, dict[str, Any]]:
    """Eight iterations; the points of both logs."""
    loggers = [TensorBoardLogger(folder, name="", version="board")]
    loggers.append(CSVLogger(folder, name="", version="table", flush_logs_every_n_steps=1))
    trainer = AEGPOTrainer(
        accelerator="cpu",
        devices=1,
        max_epochs=4,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=[SampleLogger(2), Extra(), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    module = tiny_module(pipeline, step_selector=FixedSteps([0]), allocator=UniformAllocator(2))
    data = tiny_data(folder.parent, batch_size=2, val_images=2, val_batch_size=2)
    trainer.fit(module, data)
    tags = ["reward/mean", "update/loss", "val/redness", "reward/extra1", "reward/extra5"]
    return {name: read_scalars(folder / name, tags) for name in ("board", "table")}


def test_a_full_disk_costs_points_and_no_run(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    whole = train(tmp_path / "whole", tiny_sd3_folder)
    full = FullDisk()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logged = train(tmp_path / "full", tiny_sd3_folder, full)
    finally:
        full.lift()
    said = [str(one.message) for one in caught if "could not be written" in str(one.message)]
    kinds = sorted(line.partition(" could not")[0].rpartition("/")[2][:8] for line in said)
    assert kinds == ["events.o", "held_out", "metrics."], said  # one line each
    assert all("File too large" in line and "the run goes on" in line for line in said)
    assert logged["table"] == whole["table"]  # which came late
    assert len(whole["board"]["reward/mean"]) == 8
    for tag, points in whole["board"].items():
        kept = logged["board"][tag]
        assert kept.items() <= points.items(), tag
    assert set(logged["board"]["reward/mean"]) == {1, 2, 7, 8}  # what was there and what followed
    pictures = [sorted((tmp_path / one).rglob("*.png")) for one in ("whole", "full")]
    assert len(pictures[0]) == 4 and len(pictures[1]) == 2
    assert not [path for path in (tmp_path / "full").rglob("*partial*")]


def test_a_logger_of_a_users_own_stays_its_own(tmp_path: Path) -> None:
    class Own(CSVLogger):
        """A user's."""

    trainer = AEGPOTrainer(accelerator="cpu", devices=1, logger=[Own(tmp_path)])
    assert type(trainer.loggers[0]) is Own


def test_scores_by_category_in_mlflow_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = tmp_path / "store"
    given = MLFlowLogger(tracking_uri=f"file:{store}")
    server = MLFlowLogger(tracking_uri="http://127.0.0.1:9/")
    (logger, other) = enduring([given, server])
    logger.log_metrics({"val/judge": 0.5}, step=1)
    logger.log_metrics({"val/judge/two": 0.25}, step=1)
    files = [path for path in store.rglob("metrics/val/*") if path.is_file()]
    assert sorted(path.name for path in files) == ["judge", "judge.two"]
    assert type(other) is MLFlowLogger
