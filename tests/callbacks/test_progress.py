"""The three numbers beside the progress bar, of trainings that draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import tiny_data, tiny_module
from torch import Tensor

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from aegpo.rewards.base import Reward
from callbacks.cost_logger import CostLogger
from callbacks.progress import RolloutProgressBar


class Scripted(Reward):
    """Every image of an iteration scores the same, a given number for each iteration."""

    name = "scripted"

    def __init__(self, values: list[float]) -> None:
        self.values = list(values)

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return torch.full((len(images),), self.values.pop(0))


class Shown(L.Callback):
    """Notes what stands behind the bar at the start, and after each iteration."""

    def __init__(self) -> None:
        self.texts: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.texts.append(trainer.progress_bar_callback.get_metrics(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        self.texts.append(trainer.progress_bar_callback.get_metrics(trainer, pl_module))


def train(
    tmp_path: Path,
    folder: Path,
    rewards: list[float],
    average_over: int,
    *more: L.Callback,
    resume: Path | None = None,
) -> tuple[list[dict[str, Any]], L.Trainer]:
    """One iteration for each of the rewards, or for each that a resumed run has not had."""
    bar, shown = RolloutProgressBar(average_over), Shown()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1 if resume is None else 2,
        callbacks=[*more, bar, shown],  # a bar is moved to the end, where all is logged
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    module = tiny_module(
        folder,
        num_steps=2,
        step_selector=FixedSteps([0]),
        allocator=UniformAllocator(2),
        reward=Scripted(rewards),
    )
    data = tiny_data(tmp_path, batch_size=2, batches_per_epoch=len(rewards))
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return shown.texts, trainer


def test_reward_and_change_are_averages_over_the_last_and_first_iterations(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    shown, trainer = train(tmp_path, tiny_sd3_folder, [1.0, 2.0, 9.0, 3.0, 5.0], 2, CostLogger())
    last = trainer.progress_bar_callback.get_metrics(trainer, trainer.lightning_module)
    assert last == {"reward": "4.000", "change": "+2.500", "evaluations": "40"}
    # 5 iterations of 2 prompts, 2 images and 2 steps; equal scores teach nothing.
    assert shown[0] == {}  # before the first reward


def test_it_falls_too_and_begins_with_no_change(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    shown, trainer = train(tmp_path, tiny_sd3_folder, [3.0, 1.0], 1)
    last = trainer.progress_bar_callback.get_metrics(trainer, trainer.lightning_module)
    assert last == {"reward": "1.000", "change": "-2.000"}
    assert {"reward": "3.000", "change": "+0.000"} in shown


def test_every_iteration_s_reward_is_kept_and_outlives_a_resume(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    _, before = train(tmp_path, tiny_sd3_folder, [0.25, 0.5], 1)
    assert before.progress_bar_callback.state_dict() == {"rewards": [0.25, 0.5]}
    before.save_checkpoint(tmp_path / "saved.ckpt")
    _, after = train(tmp_path, tiny_sd3_folder, [0.75, 1.0], 1, resume=tmp_path / "saved.ckpt")
    bar = after.progress_bar_callback
    assert bar.state_dict() == {"rewards": [0.25, 0.5, 0.75, 1.0]}
    assert bar.get_metrics(after, after.lightning_module) == {
        "reward": "1.000",
        "change": "+0.750",
    }


def test_an_average_needs_an_iteration() -> None:
    with pytest.raises(ValueError, match="average_over=0"):
        RolloutProgressBar(0)
