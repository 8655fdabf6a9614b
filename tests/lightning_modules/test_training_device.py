"""A training whose policy is built where Lightning builds it on a GPU: on another device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from another_device import BuildsOnMeta
from cli_runs import ROOT, configs, events, run
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.policies.families.stable_diffusion3 import StableDiffusion3


def trained(folder: Path, pipeline: Path, strategy: str | BuildsOnMeta) -> dict[str, torch.Tensor]:
    """Weights after two iterations with both entropy loops, validation and an embedding cache."""

    def policy() -> StableDiffusion3:
        return StableDiffusion3(
            str(pipeline),
            lora_rank=4,
            max_sequence_length=4,
            offload=True,
            embedding_cache=str(folder / "cache"),
        )

    module = tiny_module(pipeline, policy=policy, evaluation_steps=2)
    trainer = tiny_trainer(folder, entropy_callbacks(), max_epochs=1, strategy=strategy)
    trainer.fit(module, datamodule=tiny_data(folder))
    idle = [*module.policy.vae.parameters(), *module.policy.text_encoders.parameters()]
    assert {parameter.device.type for parameter in idle} == {"cpu"}
    return {name: value.clone() for name, value in module.policy.trainable_state_dict().items()}


def test_a_training_is_the_same_where_the_default_device_is_another(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    built = BuildsOnMeta.built
    plain = trained(tmp_path, tiny_sd3_folder, "auto")
    # All texts come from the cache now, so nothing would move the encoders away from elsewhere.
    moved = trained(tmp_path, tiny_sd3_folder, BuildsOnMeta())
    assert BuildsOnMeta.built == built + 1
    assert plain.keys() == moved.keys() and len(plain) > 4
    assert all(torch.equal(plain[name], moved[name]) for name in plain)


def test_the_quickstart_trains_where_the_default_device_is_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        "trainer": {
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "strategy": {"class_path": "another_device.BuildsOnMeta"},
        },
        "model": {
            "init_args": {
                "num_steps": 6,
                "evaluation_steps": 2,
                "allocator": {"init_args": {"images_per_prompt": 4}},
                "selection": {"init_args": {"keep": 2}},
            }
        },
        "data": {"init_args": {"batch_size": 2, "batches_per_epoch": 1, "val_images": 2}},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    built = BuildsOnMeta.built
    run(monkeypatch, "fit", *configs(ROOT / "configs/shapes.yaml", Path("small.yaml")))
    assert BuildsOnMeta.built > built
    assert events(folder / "runs/shapes").Scalars("reward/mean")
