"""Training in buckets: one size an iteration, the same after a resume, held-out images of one."""

from functools import partial

import lightning as L
import pytest
import torch
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_policy, tiny_trainer

from aegpo.exploration import NoSteps
from aegpo.image_size import Size, bucket_of
from aegpo.objectives import NFT
from callbacks.rollout_checkpoint import RolloutCheckpoint

BUCKETS = [(16, 16), (24, 16), (16, 32)]


class Sizes(L.Callback):
    """Notes of every iteration what it drew, learned and read, and the size of held-out images."""

    def __init__(self):
        self.rows, self.held_out = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged, tree = trainer.callback_metrics, pl_module.last.tree
        assert tree.transitions.latents.shape[2:] == tree.latents.shape[2:]
        reading = pl_module.entropy
        self.rows.append(
            (
                tuple(tree.images.shape[2:]),
                (int(logged["rollout/height"]), int(logged["rollout/width"])),
                float(logged["reward/mean"]),
                float(logged["update/loss"]),
                float(logged.get("ratio/rollout_max_dev", 0)),
                None if reading is None else reading.curve.tolist(),
            )
        )

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.held_out.append(tuple(outputs.images.shape[2:]))


def train(tmp_path, folder, epochs, ckpt_path=None, callbacks=(), **settings):
    tmp_path.mkdir(exist_ok=True)
    sizes = Sizes()
    module = tiny_module(
        folder, policy=partial(tiny_policy(folder), resolution=BUCKETS), lr=1e-2, **settings
    )
    callbacks = [*callbacks, sizes, RolloutCheckpoint(dirpath=str(tmp_path / "checkpoints"))]
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(module, tiny_data(tmp_path), ckpt_path=ckpt_path, weights_only=True)
    weights = torch.cat([p.detach().flatten() for p in module.policy.trainable_parameters()])
    return sizes, module, weights


def test_each_iteration_is_of_one_size_and_a_resume_draws_the_same(tmp_path, tiny_sd3_folder):
    whole, module, weights = train(
        tmp_path / "whole", tiny_sd3_folder, 2, callbacks=entropy_callbacks()
    )
    train(tmp_path / "parts", tiny_sd3_folder, 1, callbacks=entropy_callbacks())
    resumed, _, same = train(
        tmp_path / "parts", tiny_sd3_folder, 2, "last", callbacks=entropy_callbacks()
    )
    assert torch.equal(weights, same) and whole.rows[2:] == resumed.rows

    drawn = [row[0] for row in whole.rows]
    assert drawn == [row[1] for row in whole.rows] and len(drawn) == 4
    assert set(drawn[:3]) == set(BUCKETS)
    expected = [bucket_of(list(map(Size.of, BUCKETS)), module.noise, i) for i in range(4)]
    assert drawn == expected
    # All else is of the first bucket, and the probe's curves are of one size.
    assert set(whole.held_out) == {BUCKETS[0]} and module.policy.image_size == BUCKETS[0]
    assert all(row[3] is not None and row[4] < 1e-6 for row in whole.rows)


def test_images_of_the_forward_process_are_learned_from_in_buckets(tmp_path, tiny_sd3_folder):
    settings = {"step_selector": NoSteps(), "objective": NFT(), "evaluation_resolution": (32, 16)}
    sizes, _, weights = train(tmp_path, tiny_sd3_folder, 2, **settings)
    assert len({row[0] for row in sizes.rows}) == 3 and weights.isfinite().all()
    assert set(sizes.held_out) == {(32, 16)}


def test_entropy_of_rollouts_of_several_sizes_is_refused(tmp_path, tiny_sd3_folder):
    callbacks = entropy_callbacks(source="rollouts")
    with pytest.raises(ValueError, match=r"16, \[24, 16\], \[16, 32\]; use source=trajectory"):
        train(tmp_path, tiny_sd3_folder, 1, callbacks=callbacks)


def test_a_size_for_evaluations_is_checked_before_anything_is_drawn(tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, evaluation_resolution=(24, 18))
    with pytest.raises(ValueError, match=r"are \[24, 16\] and \[24, 20\]"):
        module.configure_model()
