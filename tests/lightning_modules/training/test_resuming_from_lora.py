"""A run that began from a LoRA goes on: the file is read once more, and counts once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.policies.adapters.factors import base_weight, read_factors
from aegpo.policies.adapters.layouts import Form
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from lightning_modules.aegpo_module import AEGPOModule

LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def files(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRA files, `one` and `other`."""
    folder = tmp_path_factory.mktemp("given")
    for number, name in enumerate(("one", "other")):
        policy = StableDiffusion3(
            str(tiny_sd3_folder), lora_rank=3, lora_alpha=3, lora_seed=number, max_sequence_length=4
        )
        with torch.no_grad():
            for parameter in policy.trainable_parameters():
                parameter += 0.02
        policy.save_as(folder, Form("comfyui", name))
    return folder


def built(folder: Path, **policy: Any) -> AEGPOModule:
    factory = partial(StableDiffusion3, str(folder), max_sequence_length=4, **policy)
    return tiny_module(folder, policy=factory, lr=0.02)


def resumed(tmp_path: Path, module: AEGPOModule, checkpoint: Path) -> AEGPOModule:
    """The module once more, with the checkpoint's weights."""
    tiny_trainer(tmp_path, [], limit_predict_batches=1).predict(
        module, tiny_data(tmp_path), ckpt_path=str(checkpoint), weights_only=True
    )
    return module


def trained(tmp_path: Path, module: AEGPOModule) -> Path:
    """One iteration; its checkpoint."""
    trainer = tiny_trainer(tmp_path, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, tiny_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_in_the_reference_it_is_merged_once(
    files: Path, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    lora = {"lora_from": str(files / "one.safetensors"), "lora_into": "reference", "lora_rank": 2}
    module = built(tiny_sd3_folder, **lora)
    checkpoint = trained(tmp_path, module)
    again = resumed(tmp_path, built(tiny_sd3_folder, **lora), checkpoint).policy
    for ours, theirs in zip(again.parameters(), module.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    plain = StableDiffusion3(str(tiny_sd3_folder), lora_rank=2, max_sequence_length=4)
    given = StableDiffusion3(
        str(tiny_sd3_folder), lora_from=str(files / "one.safetensors"), max_sequence_length=4
    )
    merged = (
        base_weight(plain.trained, LAYER) + read_factors(given.trained, "default")[LAYER].update()
    )
    torch.testing.assert_close(base_weight(again.trained, LAYER), merged, rtol=0, atol=1e-6)

    # The same file elsewhere is the same; another, or none, is another base.
    (tmp_path / "moved.safetensors").write_bytes((files / "one.safetensors").read_bytes())
    moved = lora | {"lora_from": str(tmp_path / "moved.safetensors")}
    resumed(tmp_path, built(tiny_sd3_folder, **moved), checkpoint)
    for other in (
        {"lora_rank": 2},
        lora | {"lora_from": str(files / "other.safetensors")},
    ):
        told = r"lora_from=.*one.safetensors' in its reference.*--model.policy.lora_into reference"
        with pytest.raises(ValueError, match=told):
            resumed(tmp_path, built(tiny_sd3_folder, **other), checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    for name in ("lora_beneath", "lora_from"):  # as of a run without, or of an earlier version
        del content["aegpo"]["made_with"][name]
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="made with no LoRA in its reference, this run with one"):
        resumed(tmp_path, built(tiny_sd3_folder, **lora), checkpoint)


def test_in_the_policy_the_checkpoint_takes_its_place(
    files: Path, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    lora = {"lora_from": str(files / "one.safetensors")}
    module = built(tiny_sd3_folder, **lora)
    checkpoint = trained(tmp_path, module)
    wanted = module.policy.trainable_state_dict()
    # With the file, without it, or with another of its shape: the checkpoint's weights count.
    same = {"lora_rank": 3, "lora_alpha": 3}
    for given in (lora, same, {"lora_from": str(files / "other.safetensors")}):
        policy = resumed(tmp_path, built(tiny_sd3_folder, **given), checkpoint).policy
        found = policy.trainable_state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert found.keys() == wanted.keys()
