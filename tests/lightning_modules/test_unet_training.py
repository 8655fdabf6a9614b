"""AEGPO on a tiny Stable Diffusion 1.5: entropy of a UNet, DDIM steps, a JPEG reward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.exploration import EntropyPeaks
from aegpo.policies.families.stable_diffusion import StableDiffusion
from aegpo.rewards.jpeg import JpegIncompressibility
from aegpo.sde import DDIM
from lightning_modules.commands.doctor.doctor import doctor


def unet_module(folder, **settings):
    return tiny_module(
        folder,
        policy=partial(StableDiffusion, str(folder), lora_rank=4, guidance_scale=2.0),
        sde=DDIM(),
        step_selector=EntropyPeaks(top_k=2, eta=1.0),
        reward=JpegIncompressibility(),
        **settings,
    )


def test_two_iterations_with_both_entropy_loops(tmp_path, tiny_sd15_folder):
    module = unet_module(tiny_sd15_folder, seed=0)
    module.configure_model()
    before = {name: p.clone() for name, p in module.policy.trainable_state_dict().items()}
    callbacks = entropy_callbacks()
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=1)
    trainer.fit(module, tiny_data(tmp_path))
    assert module.iteration == 2
    assert module.entropy.curve.shape == (4, 5) and bool(module.entropy.curve.isfinite().all())
    assert len(callbacks[0].layer_names) == 14
    tree = module.last.tree
    assert len(tree.transitions) == 2 * len(tree) == 2 * 12
    assert float(tree.sigmas[-1]) > 0 and float(tree.sigmas[0]) < 1
    after = module.policy.trainable_state_dict()
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(moved) == len(after) and all(bool(p.isfinite().all()) for p in after.values())
    assert trainer.callback_metrics["val/jpeg_incompressibility"] > 0


@pytest.mark.parametrize("micro_batch_size", [3, 100])
def test_before_the_first_update_the_ratio_is_one(
    tmp_path, tiny_sd15_folder, micro_batch_size, capsys
):
    module = unet_module(tiny_sd15_folder, seed=0, micro_batch_size=micro_batch_size)
    trainer = tiny_trainer(tmp_path, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert doctor(trainer, module, tiny_data(tmp_path)), capsys.readouterr().out
    assert "accepted 1e-06" in capsys.readouterr().out
