"""Trains the bundled world's autoencoder on rendered images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import AutoencoderKL
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.training.cosine_decay import cosine_decay


def edge_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error of the horizontal and vertical differences of neighboring pixels.

    It costs a blurred outline more than L1 alone does: outlines decide what a shape is.

    Args:
        images: Truth, ``(n, C, H, W)``.
        reconstruction: The same shape.

    Returns:
        A scalar, the sum over both directions.
    """
    error = reconstruction - images
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class AutoencoderModule(lightning.LightningModule):
    """Variational autoencoder with an L1, an edge and a small KL term (Eq. 10 of arXiv 1312.6114).

    Batches are ``(images (n, 3, H, W) in [0, 1], token ids)``; the ids are not read.

    Args:
        autoencoder: The autoencoder to train.
        optimizer: Optimizer of all its parameters; its learning rate is the schedule's peak.
        edge_weight: Weight of the error of pixel differences beside the L1 error.
        kl_weight: Weight of the KL divergence to N(0, 1) in nats per latent dimension; it sets
            how much noise in the latents the decoder learns to bear.
        warmup_steps: Optimizer steps of the linear rise of the learning rate.
        decay_steps: Optimizer steps after which the learning rate is 0, all steps of the run by
            default; more than that end the run while it still learns, fewer are refused.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        edge_weight: float = 0.5,
        kl_weight: float = 3e-3,
        warmup_steps: int = 100,
        decay_steps: int | None = None,
    ) -> None:
        super().__init__()
        if edge_weight < 0 or kl_weight < 0:
            raise ValueError(
                f"edge_weight={edge_weight} and kl_weight={kl_weight} must not be negative"
            )
        self.autoencoder = autoencoder.train()
        self.optimizer = optimizer
        self.edge_weight = edge_weight
        self.kl_weight = kl_weight
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self._validation_latents: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Encodes with the posterior's noise, decodes, and compares.

        Args:
            batch: ``(images (n, 3, H, W) in [0, 1], token ids)``.
            batch_index: Unused.

        Returns:
            The loss, a scalar.
        """
        images = 2.0 * batch[0] - 1.0
        posterior = self.autoencoder.encode(images).latent_dist
        reconstruction = self.autoencoder.decode(posterior.sample()).sample
        pixel = F.l1_loss(reconstruction, images)
        edge = edge_loss(images, reconstruction)
        kl = posterior.kl().sum() / posterior.mean.numel()
        loss: Tensor = pixel + self.edge_weight * edge + self.kl_weight * kl
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict(
            {
                "train/l1": pixel,
                "train/edge": edge,
                "train/kl": kl,
                "train/posterior_std": posterior.std.mean(),
            }
        )
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forgets the latents of the last validation."""
        self._validation_latents = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs the error of reconstruction from the posterior's mean, and keeps the latents.

        Args:
            batch: ``(images (n, 3, H, W) in [0, 1], token ids)``.
            batch_index: Unused.
        """
        images = 2.0 * batch[0] - 1.0
        latents = self.autoencoder.encode(images).latent_dist.mode()
        reconstruction = self.autoencoder.decode(latents).sample
        self._validation_latents.append(latents.float().cpu())
        self.log("val/l1", F.l1_loss(reconstruction, images), prog_bar=True)
        self.log("val/mse", F.mse_loss(reconstruction, images))
        self.log("val/edge", edge_loss(images, reconstruction))

    def configure_optimizers(self) -> Any:
        """The optimizer with its warm-up and cosine decay, stepped every batch."""
        optimizer = self.optimizer(self.autoencoder.parameters())
        num_steps = int(self.trainer.estimated_stepping_batches)
        return cosine_decay(optimizer, self.warmup_steps, num_steps, self.decay_steps)

    def export(self, folder: str | Path) -> None:
        """Writes the autoencoder in diffusers' format.

        ``scaling_factor`` and ``shift_factor`` are set so that the latents of the last
        validation have mean 0 and standard deviation 1 over all channels together.

        Args:
            folder: Folder to write.

        Raises:
            RuntimeError: If no validation has run, so that the latents' scale is unknown.
        """
        if not self._validation_latents:
            raise RuntimeError(
                "the latents' scale is measured on the validation images, but no validation has "
                "run; lower trainer.val_check_interval below trainer.max_steps"
            )
        latents = torch.cat(self._validation_latents)
        self.autoencoder.register_to_config(
            shift_factor=latents.mean().item(), scaling_factor=1.0 / latents.std().item()
        )
        self.autoencoder.save_pretrained(folder)
