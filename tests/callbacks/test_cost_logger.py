"""The arithmetic that is printed at the start, and the costs of an iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from peft.tuners.lora import LoraLayer
from tiny_training import Redness, entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import MedianSplitAllocator
from callbacks import cost_logger
from callbacks.cost_logger import CostLogger


@pytest.mark.parametrize(
    ("limits", "end"),
    [
        (
            {"max_epochs": 1},
            "one epoch: 2 iterations; 6 held-out images every 1 epoch(s); 1 epochs",
        ),
        ({"max_epochs": 9, "limit_train_batches": 1}, "one epoch: 1 iterations"),
        (
            {"max_epochs": 9, "limit_train_batches": 1},
            "; 9 epochs make 9 iterations and 108 images",
        ),
        ({"max_epochs": 9, "limit_train_batches": 0.5}, "; 9 epochs make 9 iterations"),
        ({"max_epochs": 9, "max_steps": 3}, "; max_steps: 3 makes 2 iterations and 24 images"),
        ({"max_epochs": -1, "max_time": "00:00:02:00"}, "every 1 epoch(s); ends after 120 s at"),
    ],
)
def test_the_limits_of_the_trainer_end_the_run_that_is_announced(
    tmp_path: Path,
    tiny_sd3_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
    end: str,
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(cost_logger, "rank_zero_info", printed.append)
    module, logger = tiny_module(tiny_sd3_folder), CostLogger()
    module.configure_model()
    trainer = tiny_trainer(tmp_path, [logger], **limits)
    trainer.datamodule = tiny_data(tmp_path)
    logger.on_fit_start(trainer, module)
    assert end in printed[0]


def test_the_arithmetic_of_a_batch_by_hand(
    tmp_path: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(cost_logger, "rank_zero_info", printed.append)
    module = tiny_module(
        tiny_sd3_folder,
        allocator=MedianSplitAllocator(8, 16),
        num_steps=10,
        inner_epochs=2,
        updates_per_epoch=3,
        micro_batch_size=64,
    )
    module.configure_model()
    sizes = {"batch_size": 6, "batches_per_epoch": 20, "val_images": 512}
    trainer = L.Trainer(  # of two ranks, and not launched
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=5,
        check_val_every_n_epoch=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.datamodule = tiny_data(tmp_path, **sizes)
    CostLogger().on_fit_start(trainer, module)
    layers = [layer for layer in module.policy.modules() if isinstance(layer, LoraLayer)]
    weights = sum(4 * (layer.in_features + layer.out_features) for layer in layers)  # rank 4
    assert printed == [
        "one iteration: 6 prompts, 72 images (12 per prompt) of 10 steps, 6 optimizer steps in "
        "micro-batches of 64 transitions, on 2 process(es)\n"
        "one epoch: 20 iterations; 512 held-out images every 2 epoch(s); 5 epochs "
        "make 100 iterations and 7200 images\n"
        f"trainable parameters: {weights:,}"
    ]


def test_costs_and_seconds_of_a_run(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    module = tiny_module(tiny_sd3_folder, reward=Redness())
    trainer = tiny_trainer(tmp_path, entropy_callbacks(), max_epochs=1)
    trainer.fit(module, tiny_data(tmp_path))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    # Two iterations of 4 prompts and 12 images, 5 steps; 2 steps explore and are trained on.
    assert logged["cost/rollout"] == 2 * 12 * 5
    assert logged["cost/probe"] == logged["cost/reference"] == 2 * 4 * 5
    assert logged["cost/update"] == 3 * 2 * 12 * 2
    assert logged["cost/evaluations"] == 120 + 40 + 40 + 144
    assert logged["cost/other"] == 0
    assert module.policy.evaluations.counts["validation"] == 6 * 5  # one image each, no exploring
    for phase in ("probe", "encode", "rollout", "reward", "advantage", "update"):
        assert 0 < logged[f"seconds/{phase}"] < 60
    assert 0.01 < logged["memory/peak_gib"] < 100
    assert module.timer.seconds == {}  # each iteration starts from zero
