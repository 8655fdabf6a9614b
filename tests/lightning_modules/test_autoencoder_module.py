"""Training the autoencoder: the edge loss, and a run through export, reload and the latents'
scale."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from diffusers import AutoencoderKL

from aegpo.shapes.pipeline import shapes_autoencoder
from callbacks.export_pipeline import ExportPipeline
from datamodules.shapes_datamodule import ShapesDataModule, draw_scenes
from lightning_modules.autoencoder_module import AutoencoderModule, edge_loss


def test_edge_loss_by_hand() -> None:
    images = torch.zeros(1, 1, 2, 2)
    reconstruction = torch.tensor([[[[0.0, 1.0], [3.0, 6.0]]]])
    # Across: |1|, |3| -> mean 2. Down: |3|, |5| -> mean 4.
    assert edge_loss(images, reconstruction).item() == pytest.approx(6.0)
    # A constant offset has no edges.
    assert edge_loss(images, images + 0.3).item() == pytest.approx(0.0, abs=1e-6)


def test_a_short_fit_learns_and_exports_standardized_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = AutoencoderModule(
        shapes_autoencoder((8, 8, 8)),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        warmup_steps=2,
    )
    data = ShapesDataModule(num_images=128, batch_size=32, num_validation_images=64)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ExportPipeline(str(tmp_path / "vae"))],
    )
    errors: list[float] = []
    keep = module.on_validation_epoch_end
    module.on_validation_epoch_end = lambda: (  # type: ignore[method-assign]
        keep(),
        errors.append(trainer.callback_metrics["val/l1"].item()),
    )[0]
    trainer.fit(module, data)
    assert errors[-1] < 0.7 * errors[0]

    loaded = AutoencoderKL.from_pretrained(tmp_path / "vae")
    images = data.validation.tensors[0]
    with torch.no_grad():
        latents = loaded.encode(2.0 * images - 1.0).latent_dist.mode()
    scaled = (latents - loaded.config.shift_factor) * loaded.config.scaling_factor
    assert scaled.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert scaled.std().item() == pytest.approx(1.0, abs=1e-4)

    encoded = ShapesDataModule(
        num_images=128,
        batch_size=32,
        num_validation_images=64,
        latents=True,
        vae=str(tmp_path / "vae"),
    )
    encoded.setup("fit")
    torch.testing.assert_close(encoded.validation.tensors[0], scaled, rtol=1e-4, atol=1e-4)
    assert torch.equal(encoded.validation.tensors[1], data.validation.tensors[1])


def test_export_needs_a_validation(tmp_path: Path) -> None:
    module = AutoencoderModule(shapes_autoencoder((8, 8, 8)))
    with pytest.raises(RuntimeError, match="no validation has run"):
        module.export(tmp_path)


def test_negative_weights_are_named() -> None:
    with pytest.raises(ValueError, match="kl_weight=-1"):
        AutoencoderModule(shapes_autoencoder((8, 8, 8)), kl_weight=-1.0)


def test_scenes_follow_the_weights() -> None:
    scenes = draw_scenes(2000, {"single": 3.0, "relation": 1.0}, seed=0)
    share = sum(scene.category == "single" for scene in scenes) / 2000
    assert {scene.category for scene in scenes} == {"single", "relation"}
    assert share == pytest.approx(0.75, abs=0.04)
    assert scenes == draw_scenes(2000, {"single": 3.0, "relation": 1.0}, seed=0)
    assert scenes != draw_scenes(2000, {"single": 3.0, "relation": 1.0}, seed=1)


@pytest.mark.parametrize("weights", [{"five": 1.0}, {"single": -1.0, "two": 2.0}, {"single": 0.0}])
def test_bad_weights_are_named(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"unknown categories|must not be negative"):
        draw_scenes(10, weights, seed=0)


def test_batches_are_whole_and_in_a_new_order_each_epoch() -> None:
    data = ShapesDataModule(num_images=50, batch_size=16, num_validation_images=10)
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    assert [len(batch[0]) for batch in first] == [16, 16, 16]
    assert first[0][0].shape == (16, 3, 32, 32)
    assert not torch.equal(first[0][0], second[0][0])
    assert [len(batch[0]) for batch in data.val_dataloader()] == [10]
    with pytest.raises(ValueError, match="batch_size=51"):
        ShapesDataModule(num_images=50, batch_size=51)
