"""Pretrains a Stable Diffusion 3 pipeline: text encoders and transformer together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import StableDiffusion3Pipeline
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.training.cosine_decay import cosine_decay


def encode_tokens(pipeline: StableDiffusion3Pipeline, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes tokens as ``pipeline.encode_prompt(..., max_sequence_length=0)`` does, with gradient.

    Args:
        pipeline: A pipeline without T5 whose two tokenizers agree.
        token_ids: ``(n, S)`` int64.

    Returns:
        Text embeddings ``(n, S, D)``, the two encoders side by side and zeros up to the
        transformer's width, and pooled embeddings ``(n, P)``.
    """
    outputs = [
        encoder(token_ids, output_hidden_states=True)
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    ]
    embeds = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    missing = pipeline.transformer.config.joint_attention_dim - embeds.shape[-1]
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return F.pad(embeds, (0, missing)), pooled


class FlowMatchingModule(lightning.LightningModule):
    """Flow matching on latents (Eq. 14 and 19 of Esser et al., arXiv 2403.03206).

    x_sigma = (1 - sigma) x_0 + sigma eps, and the transformer learns the velocity eps - x_0 at
    sigmas drawn from a logit-normal distribution. Batches are ``(latents (n, C, h, w) in the
    transformer's scale, token ids (n, S) int64)``.

    Args:
        pipeline: The pipeline to train; its autoencoder stays as it is.
        optimizer: Optimizer of the text encoders and the transformer; its learning rate is the
            schedule's peak.
        conditioning_dropout: Share of the samples that see the empty prompt, in [0, 1).
        logit_mean: Mean of logit(sigma); above 0 favors noise.
        logit_std: Standard deviation of logit(sigma).
        warmup_steps: Optimizer steps of the linear rise of the learning rate.
        decay_steps: Optimizer steps after which the learning rate is 0, all steps of the run by
            default; more than that end the run while it still learns, fewer are refused.
    """

    empty_prompt: Tensor

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        conditioning_dropout: float = 0.1,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        warmup_steps: int = 500,
        decay_steps: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= conditioning_dropout < 1.0:
            raise ValueError(
                f"conditioning_dropout={conditioning_dropout} must be at least 0 and below 1"
            )
        if logit_std <= 0:
            raise ValueError(f"logit_std={logit_std} must be above 0")
        self.pipeline = pipeline
        self.transformer = pipeline.transformer.train()
        self.text_encoder = pipeline.text_encoder.train()
        self.text_encoder_2 = pipeline.text_encoder_2.train()
        self.optimizer = optimizer
        self.conditioning_dropout = conditioning_dropout
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        empty = pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
        self.register_buffer("empty_prompt", empty, persistent=False)  # (1, S)

    def velocity_error(
        self, latents: Tensor, token_ids: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        """Squared error of the predicted velocity.

        Args:
            latents: x_0, ``(n, C, h, w)``.
            token_ids: ``(n, S)`` int64.
            sigma: Noise level, ``(n,)`` in [0, 1].
            noise: eps, ``(n, C, h, w)``.

        Returns:
            The mean over dimensions, ``(n,)``.
        """
        embeds, pooled = encode_tokens(self.pipeline, token_ids)
        level = sigma[:, None, None, None]
        predicted: Tensor = self.transformer(
            (1.0 - level) * latents + level * noise,
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return (predicted - (noise - latents)).square().flatten(1).mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One flow-matching loss at random sigmas, some prompts dropped.

        Args:
            batch: ``(latents (n, C, h, w), token ids (n, S))``.
            batch_index: Unused.

        Returns:
            The loss, a scalar.
        """
        latents, token_ids = batch
        n = len(latents)
        dropped = torch.rand(n, 1, device=latents.device) < self.conditioning_dropout
        token_ids = torch.where(dropped, self.empty_prompt, token_ids)
        logit = self.logit_mean + self.logit_std * torch.randn(n, device=latents.device)
        loss = self.velocity_error(
            latents, token_ids, torch.sigmoid(logit), torch.randn_like(latents)
        ).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs the loss at evenly spread sigmas, the same noise each time.

        Args:
            batch: ``(latents (n, C, h, w), token ids (n, S))``.
            batch_index: Seeds the noise.
        """
        latents, token_ids = batch
        n = len(latents)
        generator = torch.Generator(device="cpu").manual_seed(batch_index)
        noise = torch.randn(latents.shape, generator=generator, device="cpu").to(latents)
        sigma = (torch.arange(n, device=latents.device) + 0.5) / n
        error = self.velocity_error(latents, token_ids, sigma, noise)
        self.log("val/loss", error.mean(), prog_bar=True)
        # Composition is decided at high noise, outlines at low noise.
        self.log("val/loss_high_noise", error[sigma > 0.5].mean())
        self.log("val/loss_low_noise", error[sigma <= 0.5].mean())

    def configure_optimizers(self) -> Any:
        """The optimizer with its warm-up and cosine decay, stepped every batch."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        num_steps = int(self.trainer.estimated_stepping_batches)
        return cosine_decay(optimizer, self.warmup_steps, num_steps, self.decay_steps)

    def export(self, folder: str | Path) -> None:
        """Writes the whole pipeline in diffusers' format.

        Args:
            folder: Folder to write.
        """
        self.pipeline.save_pretrained(folder)
