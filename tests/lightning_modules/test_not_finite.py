"""Losses, gradients and weights that are not finite: a step is skipped, and a run told why."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from faulty_policy import Faulty, Poison
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer
from torch import nn
from warm_ranks import WarmRanks

from lightning_modules.training.optimizer_step import optimizer_step


def faulty(folder: Path, **settings: Any) -> Any:
    return partial(Faulty, str(folder), lora_rank=4, max_sequence_length=4, **settings)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_the_next_is_not(
    tiny_sd3_folder: Path, tmp_path: Path, kind: str
) -> None:
    module = tiny_module(tiny_sd3_folder, policy=faulty(tiny_sd3_folder), lr=1e-2)
    poison = Poison(kind, [1])
    tiny_trainer(tmp_path, [poison], limit_val_batches=0).fit(module, tiny_data(tmp_path))
    assert poison.skipped == [0, 2, 0, 0]  # two optimizer steps an iteration
    assert poison.moved == [True, False, True, True]
    assert module.skipped.in_a_row == 0
    weights = module.policy.trainable_state_dict().values()
    assert all(bool(weight.isfinite().all()) for weight in weights)


def test_too_many_in_a_row_stop_the_run_with_step_prompt_and_reward(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    module = tiny_module(tiny_sd3_folder, policy=faulty(tiny_sd3_folder), max_skipped_steps=4)
    with pytest.raises(RuntimeError) as stopped:
        tiny_trainer(tmp_path, [Poison("loss", [1, 2, 3])], limit_val_batches=0).fit(
            module, tiny_data(tmp_path)
        )
    line = str(stopped.value)
    assert line.startswith(
        "4 optimizer steps in a row were skipped because their loss or gradient was not finite, as "
        "often as model.max_skipped_steps allows; the last was step 2 of iteration 2, with the "
        "prompts 'a "
    )
    # Two micro-batches of eight, whose first sample each is poisoned.
    assert 1 <= line.count(" (reward ") <= 2 and "nan" not in line and "\n" not in line
    assert "no trained weight is above" in line
    with pytest.raises(ValueError, match="max_skipped_steps=0 must be at least 1"):
        tiny_module(tiny_sd3_folder, max_skipped_steps=0)


@pytest.mark.parametrize("callbacks", [entropy_callbacks, list], ids=["entropy", "uniform"])
def test_a_rate_that_explodes_is_named_as_the_cause(
    tiny_sd3_folder: Path, tmp_path: Path, callbacks: Any
) -> None:
    module = tiny_module(tiny_sd3_folder, lr=1e30)
    with pytest.raises(RuntimeError) as stopped:
        tiny_trainer(tmp_path, callbacks(), limit_val_batches=0).fit(module, tiny_data(tmp_path))
    line = str(stopped.value)
    assert line.startswith("the policy predicts values that are not finite, for all of ")
    assert "the largest trained weight is 1e+30 (" in line and "lora_" in line
    assert "lower model.optimizer.lr" in line and "\n" not in line


def test_an_infinite_loss_with_a_finite_gradient_is_not_stepped_on() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.full((2,), 0.25)
    step = optimizer_step(optimizer, [weight], 10.0, torch.tensor([1.0, float("inf")]))
    assert not step.taken and step.norm == pytest.approx(0.125**0.5)
    assert weight.tolist() == [1.0, 1.0] and weight.grad is None
    weight.grad = torch.full((2,), 0.25)
    assert optimizer_step(optimizer, [weight], 10.0, torch.empty(0)).taken
    assert weight.tolist() == [0.875, 0.875]


class Witness(L.Callback):
    """Keeps what a rank saw, and compares the ranks' weights."""

    def __init__(self) -> None:
        self.equal = False

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        weights = torch.cat(
            [weight.flatten() for weight in pl_module.policy.trainable_state_dict().values()]
        )
        both = pl_module.all_gather(weights)
        self.equal = bool(both[0].equal(both[1]))


def one_of_two(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Train where rank 0 has little memory and rank 1 a loss that is not finite."""
    policy = faulty(folder, fits=4, decodes=2, learns=2, only_rank=0)
    poison, witness = Poison("loss", [1], only_rank=1), Witness()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        callbacks=[*entropy_callbacks(), poison, witness],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    own = tmp_path / str(trainer.global_rank)  # ranks do not write while others read
    own.mkdir()
    module = tiny_module(folder, policy=policy, lr=1e-2)
    trainer.fit(module, tiny_data(own))
    return {
        "skipped": poison.skipped,
        "moved": poison.moved,
        "micro_batch_size": module.micro_batch_size,
        "max_batch": module.policy.max_batch,
        "equal": witness.equal,
    }


def test_what_happens_to_one_rank_keeps_both_in_step(
    pair: WarmRanks, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    first, second = pair.run(one_of_two, tiny_sd3_folder, tmp_path)
    assert first["skipped"] == [0, 2, 0, 0]  # logged by rank 0, which had nothing to skip
    for seen in (first, second):
        assert seen["moved"] == [True, False, True, True] and seen["equal"]
    assert first["max_batch"] == 3 and first["micro_batch_size"] in (1, 2)
    assert (second["max_batch"], second["micro_batch_size"]) == (64, 8)
