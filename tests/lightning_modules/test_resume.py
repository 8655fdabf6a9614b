"""Interrupted and resumed equals uninterrupted, and a full disk costs no checkpoint."""

import os
import resource
import signal
from contextlib import contextmanager

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.entropy.category_controls import WithinCategory
from callbacks.controlled_entropy import ControlledEntropy
from callbacks.rollout_checkpoint import RolloutCheckpoint
from callbacks.running_entropy import RunningEntropy


class Trace(L.Callback):
    """Notes prompts, rewards and losses of every iteration."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = trainer.callback_metrics
        self.rows.append(
            (
                pl_module.iteration,
                tuple(batch.index.tolist()),
                tuple(pl_module.last.group_sizes.tolist()),
                float(logged["reward/mean"]),
                float(logged["update/loss"]),
                float(logged["update/gradient_norm"]),
                float(logged["cost/evaluations"]),
            )
        )


def run(tmp_path, folder, name, max_epochs, ckpt_path=None, callbacks=None):
    trace = Trace()
    entropy = entropy_callbacks() if callbacks is None else callbacks()
    callbacks = [*entropy, trace, RolloutCheckpoint(dirpath=str(tmp_path / name))]
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=max_epochs, enable_checkpointing=True)
    module = tiny_module(folder, lr=1e-2)
    trainer.fit(module, tiny_data(tmp_path), ckpt_path=ckpt_path, weights_only=True)
    return trace.rows, module


def remembering():
    """Everything between the reading and the loops that has a state of its own."""
    probe, *others = entropy_callbacks()
    return [probe, RunningEntropy(0.5), ControlledEntropy(WithinCategory(0.5)), *others]


@pytest.mark.parametrize(
    "callbacks",
    [entropy_callbacks, lambda: entropy_callbacks(source="rollouts"), remembering],
    ids=["trajectory", "rollouts", "running and within category"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tiny_sd3_folder, callbacks):
    whole, module = run(tmp_path, tiny_sd3_folder, "whole", 2, callbacks=callbacks)
    first, _ = run(tmp_path, tiny_sd3_folder, "halves", 1, callbacks=callbacks)
    second, resumed = run(
        tmp_path, tiny_sd3_folder, "halves", 2, ckpt_path="last", callbacks=callbacks
    )
    assert first + second == whole
    for own, other in zip(
        module.policy.trainable_parameters(), resumed.policy.trainable_parameters(), strict=True
    ):
        assert torch.equal(own, other)


class Told(L.Callback):
    """Tells its own process to end, in an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_told_to_end_inside_an_epoch_goes_on_from_there(tmp_path, tiny_sd3_folder):
    whole, _ = run(tmp_path, tiny_sd3_folder, "whole", 2)
    trace = Trace()
    checkpoint = RolloutCheckpoint(dirpath=str(tmp_path / "halves"))
    callbacks = [*entropy_callbacks(), trace, Told(2), checkpoint]
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=2, enable_checkpointing=True)
    with pytest.raises(SIGTERMException):
        trainer.fit(tiny_module(tiny_sd3_folder, lr=1e-2), tiny_data(tmp_path))
    saved = torch.load(tmp_path / "halves" / "last.ckpt", weights_only=True)
    assert saved["aegpo"]["iteration"] == len(trace.rows) == 3  # of four, two an epoch
    rest, _ = run(tmp_path, tiny_sd3_folder, "halves", 2, ckpt_path="last")
    assert trace.rows + rest == whole


def test_another_seed_is_another_run(tmp_path, tiny_sd3_folder):
    rows = []
    for seed in (0, 1):
        trace = Trace()
        trainer = tiny_trainer(tmp_path, [*entropy_callbacks(), trace], max_epochs=1)
        trainer.fit(tiny_module(tiny_sd3_folder, seed=seed), tiny_data(tmp_path))
        rows.append([row[3] for row in trace.rows])
    assert rows[0] != rows[1]


def test_a_checkpoint_holds_the_trained_tensors_only(tmp_path, tiny_sd3_folder):
    _, module = run(tmp_path, tiny_sd3_folder, "small", 1)
    checkpoint = torch.load(tmp_path / "small" / "last.ckpt", weights_only=True)
    trained = sum(p.numel() for p in module.policy.trainable_parameters())
    assert sum(value.numel() for value in checkpoint["state_dict"].values()) == trained


@contextmanager
def no_file_above(size):
    """Has the system refuse what a file writes beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_a_warning_and_leaves_the_last_checkpoint(tmp_path, tiny_sd3_folder):
    run(tmp_path, tiny_sd3_folder, "disk", 1)
    before = (tmp_path / "disk" / "last.ckpt").read_bytes()
    with (
        no_file_above(len(before) // 2),  # in the middle of the file
        pytest.warns(UserWarning, match="File too large.*the previous one is untouched"),
    ):
        rows, _ = run(tmp_path, tiny_sd3_folder, "disk", 2, ckpt_path="last")
    assert len(rows) == 2  # the run went on
    assert (tmp_path / "disk" / "last.ckpt").read_bytes() == before
    assert os.listdir(tmp_path / "disk") == ["last.ckpt"]  # nothing is left aside
