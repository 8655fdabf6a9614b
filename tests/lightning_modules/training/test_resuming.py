"""A checkpoint goes to a run of the same make, or is refused: nothing is half applied."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import PROMPTS, entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.samplers import AdamsBashforth, UniPC
from callbacks.rollout_checkpoint import RolloutCheckpoint
from datamodules.prompt_datamodule import PromptDataModule
from lightning_modules.aegpo_module import AEGPOModule


def policy(folder: Path, **settings: Any) -> partial[StableDiffusion3]:
    settings = {"lora_rank": 4, "max_sequence_length": 4} | settings
    return partial(StableDiffusion3, str(folder), **settings)


@pytest.fixture(scope="module")
def checkpoint(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of two iterations."""
    folder = tmp_path_factory.mktemp("resuming")
    callbacks = [*entropy_callbacks(), RolloutCheckpoint(dirpath=str(folder))]
    trainer = tiny_trainer(folder, callbacks, max_epochs=1, enable_checkpointing=True)
    trainer.fit(tiny_module(tiny_sd3_folder), tiny_data(folder, val_images=2))
    return folder / "last.ckpt"


def go_on(
    tmp_path: Path,
    module: AEGPOModule,
    checkpoint: Path | str,
    command: str = "fit",
    data: PromptDataModule | None = None,
    callbacks: list[Any] | None = None,
) -> None:
    """`fit` for one more epoch, or another command, from a checkpoint."""
    callbacks = entropy_callbacks() if callbacks is None else callbacks
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=2, limit_val_batches=1)
    data = data or tiny_data(tmp_path, val_images=2)
    getattr(trainer, command)(module, datamodule=data, ckpt_path=str(checkpoint), weights_only=True)


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"lora_targets": ["attn.to_q"]},
            r"lora_targets=\['attention'\], this run .* pass --model",
        ),
        (
            {"lora_targets": ["attention", "feed_forward"]},
            r"pass --model.policy.lora_targets '\[attention\]'",
        ),
        ({"lora_rank": 8}, "lora_rank=4, this run with 8; pass --model.policy.lora_rank 4"),
        ({"lora_alpha": 1}, "lora_alpha=8, this run with 1; pass --model.policy.lora_alpha 8"),
        ({"full_finetuning": True}, "full_finetuning=False, this run with True"),
    ],
    ids=lambda settings: "-".join(settings) if isinstance(settings, dict) else "",
)
def test_another_make_is_refused_by_every_command(
    tmp_path: Path,
    tiny_sd3_folder: Path,
    checkpoint: Path,
    command: str,
    settings: dict[str, Any],
    told: str,
) -> None:
    module = tiny_module(tiny_sd3_folder, policy=policy(tiny_sd3_folder, **settings))
    with pytest.raises(ValueError, match=told):
        go_on(tmp_path, module, checkpoint, command)


@pytest.mark.parametrize("change", ["missing", "unused"])
def test_every_trained_tensor_is_in_the_checkpoint_and_no_other(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path, change: str
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    name = next(iter(content["state_dict"]))
    if change == "missing":
        del content["state_dict"][name]
    else:
        content["state_dict"][f"{name}.more"] = torch.zeros(1)
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=f"in 1 tensors, first: {name.removeprefix('policy.')}"):
        go_on(tmp_path, tiny_module(tiny_sd3_folder), tmp_path / "changed.ckpt", "validate")


def test_a_foreign_checkpoint_is_named(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not written by this program: it holds state_dict, py"):
        go_on(tmp_path, tiny_module(tiny_sd3_folder), tmp_path / "other.ckpt", "validate")


def test_a_folder_that_has_moved_is_no_other_model(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_sd3_folder)
    with caplog.at_level("INFO"):
        go_on(tmp_path, tiny_module(moved), checkpoint, "validate")
    assert "it is taken to be the same model" in caplog.text


def optimizer_of(module: AEGPOModule) -> dict[str, Any]:
    (group,) = module.optimizers().optimizer.param_groups  # type: ignore[union-attr]
    return {name: value for name, value in group.items() if name != "params"}


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ExponentialLR:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize("scheduled", [False, True])
def test_what_this_run_says_of_the_optimizer_wins(
    tmp_path: Path,
    tiny_sd3_folder: Path,
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    scheduled: bool,
) -> None:
    if scheduled:
        callbacks = [RolloutCheckpoint(dirpath=str(tmp_path))]
        trainer = tiny_trainer(tmp_path, callbacks, max_epochs=1, enable_checkpointing=True)
        trainer.fit(tiny_module(tiny_sd3_folder, lr_scheduler=decay), tiny_data(tmp_path))
        checkpoint = tmp_path / "last.ckpt"
    module = tiny_module(tiny_sd3_folder, lr_scheduler=decay if scheduled else None)
    module.optimizer_factory = partial(
        torch.optim.AdamW, lr=1e-2, betas=(0.5, 0.9), weight_decay=0.0
    )
    with caplog.at_level("INFO"):
        go_on(tmp_path, module, checkpoint, callbacks=[])
    now = optimizer_of(module)
    assert (now["betas"], now["weight_decay"]) == ((0.5, 0.9), 0.0)
    # Four iterations in all, the new rate from the third on and its schedule from the first.
    assert now["lr"] == pytest.approx(1e-2 * 0.5**4 if scheduled else 1e-2)
    assert "the optimizer goes on with lr=0.01, before it had 0.001" in caplog.text


def test_a_schedule_that_is_taken_away_leaves_the_rate_of_this_run(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    callbacks = [RolloutCheckpoint(dirpath=str(tmp_path))]
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=1, enable_checkpointing=True)
    trainer.fit(tiny_module(tiny_sd3_folder, lr_scheduler=decay), tiny_data(tmp_path))
    module = tiny_module(tiny_sd3_folder)
    go_on(tmp_path, module, tmp_path / "last.ckpt", callbacks=[])
    assert optimizer_of(module)["lr"] == 1e-3


def test_another_optimizer_is_refused_and_evaluates_all_the_same(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path
) -> None:
    module = tiny_module(tiny_sd3_folder)
    module.optimizer_factory = partial(torch.optim.SGD, lr=1e-3)
    go_on(tmp_path, module, checkpoint, "validate")
    with pytest.raises(ValueError, match="optimizer='AdamW', this run with 'SGD'; its state is"):
        go_on(tmp_path, module, checkpoint)


def test_other_steps_drop_the_readings_and_go_on(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = tiny_module(tiny_sd3_folder, num_steps=6)
    with caplog.at_level("INFO"):
        go_on(tmp_path, module, checkpoint)
    assert module.iteration == 4 and module.entropy.curve.shape == (4, 6)
    assert "readings so far are of 5 steps, the rollouts now of model.num_steps=6" in caplog.text


def test_another_sampler_is_told_and_drops_the_readings(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = tiny_module(tiny_sd3_folder, sampler=AdamsBashforth())
    with caplog.at_level("INFO"):
        go_on(tmp_path, module, checkpoint)
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    told = "was made with sampler='Euler', this run with 'AdamsBashforth()'; rollouts are drawn by"
    assert told in caplog.text and "evaluation_sampler" not in caplog.text
    readings = "are of 5 steps by Euler, the rollouts now of model.num_steps=5 and model.sampler"
    assert readings in caplog.text
    caplog.clear()
    # The run's own checkpoint is of its own make; another way to evaluate it is told.
    again = tiny_module(tiny_sd3_folder, sampler=AdamsBashforth(), evaluation_sampler=UniPC())
    with caplog.at_level("INFO"):
        go_on(tmp_path, again, tmp_path / "last.ckpt", "validate", callbacks=[])
    assert "evaluation_sampler='Euler', this run with 'UniPC(order=2)'; held-out" in caplog.text
    assert " sampler=" not in caplog.text and "dropped" not in caplog.text


class Visits(L.Callback):
    """Notes the indices that were visited."""

    def __init__(self) -> None:
        self.indices: set[int] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.indices |= set(pl_module.last.batch.index.tolist())


def write_prompts(folder: Path, prompts: list[str]) -> PromptDataModule:
    (folder / "other.txt").write_text("\n".join(prompts))
    return PromptDataModule(
        str(folder / "other.txt"),
        val_file=str(folder / "other.txt"),
        batch_size=4,
        batches_per_epoch=2,
        val_images=2,
    )


def test_readings_go_by_the_text_and_not_by_its_number(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path
) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    (state,) = [value for value in saved.values() if isinstance(value, dict) and "texts" in value]
    known = dict(zip(PROMPTS, state["delta_entropy"].tolist(), strict=True))
    assert sum(value == value for value in known.values()) == 8  # two iterations of four
    data = write_prompts(tmp_path, ["a new prompt", *reversed(PROMPTS)])
    data.load_state_dict(state)
    after = data.sampler.delta_entropy.tolist()
    assert after[0] != after[0]  # nothing is known of it
    assert after[1:] == pytest.approx([known[text] for text in reversed(PROMPTS)], nan_ok=True)

    probe, *others = entropy_callbacks()
    visits = Visits()
    module = tiny_module(tiny_sd3_folder)
    go_on(tmp_path, module, checkpoint, data=data, callbacks=[probe, *others, visits])
    fresh, *others = entropy_callbacks()
    trainer = tiny_trainer(tmp_path, [fresh, *others], max_epochs=3, limit_val_batches=0)
    trainer.fit(tiny_module(tiny_sd3_folder), data)
    shared = visits.indices & set(fresh.reference)
    assert len(shared) > 2
    for index in shared:  # read anew, as a run that never saw the other file reads it
        torch.testing.assert_close(probe.reference[index], fresh.reference[index])


def test_validate_takes_any_prompt_file(
    tmp_path: Path, tiny_sd3_folder: Path, checkpoint: Path
) -> None:
    data = write_prompts(tmp_path, ["a", "b", "c", "d", "e"])
    go_on(tmp_path, tiny_module(tiny_sd3_folder), checkpoint, "validate", data=data)
