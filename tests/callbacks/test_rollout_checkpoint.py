"""Which checkpoints a run leaves; a full disk is tested with the resuming."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from callbacks.rollout_checkpoint import RolloutCheckpoint


class Score(L.Callback):
    """Logs a score of its own after every epoch: up, then down; may end the run in the last."""

    def __init__(self, crash: bool = False) -> None:
        self.crash = crash

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if self.crash and trainer.current_epoch == 2:
            raise RuntimeError("power failure")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.log("val/score", [0.25, 0.75, 0.5][trainer.current_epoch])


@pytest.fixture
def run(tmp_path: Path, tiny_sd3_folder: Path) -> Any:
    """Three epochs of one iteration; returns the iteration that each checkpoint holds."""

    def train(crash: bool = False, **settings: Any) -> dict[str, int]:
        folder = tmp_path / "checkpoints"
        callbacks = [Score(crash), RolloutCheckpoint(dirpath=str(folder), **settings)]
        module = tiny_module(
            tiny_sd3_folder, step_selector=FixedSteps([0]), allocator=UniformAllocator(2)
        )
        trainer = tiny_trainer(tmp_path, callbacks, max_epochs=3, enable_checkpointing=True)
        data = tiny_data(tmp_path, batches_per_epoch=1, batch_size=2, val_images=2)
        with pytest.raises(RuntimeError, match="power") if crash else nullcontext():
            trainer.fit(module, data)
        return {
            file.name: torch.load(file, weights_only=True)["aegpo"]["iteration"]
            for file in folder.iterdir()
        }

    return train


def test_a_run_that_dies_leaves_the_last_whole_epoch(run: Any) -> None:
    assert run(crash=True) == {"last.ckpt": 2}


def test_the_end_is_always_kept(run: Any) -> None:
    assert run(every_n_epochs=2) == {"last.ckpt": 3}


def test_the_best_by_a_monitored_score_is_kept_beside_the_last(run: Any) -> None:
    assert run(monitor="val/score") == {"last.ckpt": 3, "best.ckpt": 2}


def test_auto_is_the_first_score_that_is_not_trained_on(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    def chosen(*names: str) -> str | None:
        rewards = [Redness() for _ in names]
        for reward, name in zip(rewards, names, strict=True):
            reward.name = name
        callback = RolloutCheckpoint(dirpath=str(tmp_path), monitor="auto")
        module = tiny_module(tiny_sd3_folder, reward=rewards[0], evaluation_rewards=rewards[1:])
        callback.setup(tiny_trainer(tmp_path, [callback], enable_checkpointing=True), module, "fit")
        return callback.monitor

    assert chosen("match", "two/judges", "clip") == "val/two%2Fjudges"
    assert chosen("match") == "val/match"
    callback = RolloutCheckpoint(dirpath=str(tmp_path), monitor="auto")
    with pytest.raises(ValueError, match="LightningModule has none; name a logged score"):
        callback.setup(tiny_trainer(tmp_path, []), L.LightningModule(), "fit")
