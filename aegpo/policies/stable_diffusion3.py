"""Stable Diffusion 3 and 3.5 as a policy (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from aegpo.entropy.tokens import TokenLayout
from aegpo.noise import run_seed
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.lora import (
    ADAPTER,
    adapters_disabled,
    add_lora,
    lora_state_dict,
    match_targets,
)
from aegpo.policies.pretrained import find_pipeline, read_model_index
from aegpo.sigmas import Spacing, resolution_mu, scheduler_sigmas

LORA_GROUPS = {
    "attention": (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ),
    "image_attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
}
"""LoRA targets by group: joint attention, SD3.5's second image-only attention, feed-forward."""


class StableDiffusion3(Policy):
    """A Stable Diffusion 3 pipeline whose transformer is trained, by LoRA or wholly.

    Text encoders and autoencoder are frozen. Without T5 the pipeline appends
    `max_sequence_length` zero tokens to the text; the transformer attends to them, as it did when
    it was trained, and the conditioning's mask marks them as not real.

    Args:
        pretrained: Hub id or folder of a StableDiffusion3Pipeline, or "shapes" for the bundled one.
        lora_rank: Rank of the adapters.
        lora_alpha: Adapters are scaled by lora_alpha / lora_rank; twice the rank by default.
        lora_targets: Layers that get adapters: "attention", "image_attention", "feed_forward", or
            ends of layer names; the joint attention by default (as in Flow-GRPO, arXiv 2505.05470).
        lora_seed: Seed of the adapters' initial weights; None for the run's `seed_everything`.
        full_finetuning: Train all weights of the transformer instead of adapters. The reference is
            then a second transformer, read again from `pretrained` when it is first needed.
        guidance_scale: Weight of classifier-free guidance; 1 is no guidance and half the cost.
        max_sequence_length: T5 tokens per prompt, or zero tokens in place of an absent T5 (0 for
            none of them).
        resolution: Height and width of the images in pixels; the model's own by default.
        sigma_spacing: "scheduler" for the noise levels of the pipeline itself, "uniform" for
            linspace(1, 1/T, T) through the scheduler's shift, then 0.
        max_batch: Most rows in one call of the transformer; with guidance a sample is two rows.
        decode_batch: Most latents in one call of the decoder.
        max_cached_prompts: Prompts whose embeddings are kept in CPU memory.
        dtype: Of the frozen weights; whatever is trained is float32.
        gradient_checkpointing: Compute activations twice instead of storing them.

    Raises:
        FileNotFoundError: If `pretrained` cannot be found or lacks a part.
        ValueError: If it is another kind of pipeline, or an argument is out of range.
    """

    def __init__(
        self,
        pretrained: str,
        lora_rank: int = 32,
        lora_alpha: int | None = None,
        lora_targets: list[str] | None = None,
        lora_seed: int | None = None,
        full_finetuning: bool = False,
        guidance_scale: float = 1.0,
        max_sequence_length: int = 256,
        resolution: int | None = None,
        sigma_spacing: Spacing = "scheduler",
        max_batch: int = 64,
        decode_batch: int = 64,
        max_cached_prompts: int = 4096,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(guidance_scale, max_batch, decode_batch, max_cached_prompts)
        if sigma_spacing not in ("scheduler", "uniform"):
            raise ValueError(f"sigma_spacing={sigma_spacing!r}; choose scheduler or uniform")
        if max_sequence_length < 0:
            raise ValueError(f"max_sequence_length={max_sequence_length}; it must be 0 or more")
        self.max_sequence_length = max_sequence_length
        self.sigma_spacing = sigma_spacing
        self.full_finetuning = full_finetuning
        self._source = find_pipeline(pretrained)
        self._frozen_dtype: torch.dtype = getattr(torch, dtype)

        # The pipeline is no module: it shares the modules registered below, and so follows `.to`.
        self.pipeline = _load_pipeline(self._source, self._frozen_dtype)
        self.transformer: SD3Transformer2DModel = self.pipeline.transformer
        self.vae: nn.Module = self.pipeline.vae
        self.text_encoders = nn.ModuleList(
            encoder
            for encoder in (
                self.pipeline.text_encoder,
                self.pipeline.text_encoder_2,
                self.pipeline.text_encoder_3,
            )
            if encoder is not None
        )
        self._latent_size = self._check_resolution(resolution)

        self.requires_grad_(False)
        if full_finetuning:
            if lora_targets is not None:
                raise ValueError("full_finetuning=True trains no adapters; remove lora_targets")
            self.transformer.float().requires_grad_(True)
        else:
            layers = match_targets(self.transformer, lora_targets or ["attention"], LORA_GROUPS)
            alpha = 2 * lora_rank if lora_alpha is None else lora_alpha
            add_lora(self.transformer, layers, lora_rank, alpha, run_seed(lora_seed))
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        # A list hides the reference from the module registry: it is no part of a checkpoint.
        self._reference: list[SD3Transformer2DModel] = []
        self._inside_reference = False
        self.eval()

    def train(self, mode: bool = True) -> StableDiffusion3:
        """As for any module, but the frozen parts stay in evaluation mode (T5 has dropout)."""
        super().train(mode)
        self.vae.eval()
        self.text_encoders.eval()
        return self

    @property
    def denoiser(self) -> SD3Transformer2DModel:
        """The transformer, or inside `reference` after full fine-tuning its frozen copy."""
        return self._reference[0] if self._inside_reference else self.transformer

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, (C, H, W)."""
        return (int(self.transformer.config.in_channels), self._latent_size, self._latent_size)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, of one call of the transformer, shape (n, C, H, W)."""
        dtype = torch.float32 if self.full_finetuning else self._frozen_dtype
        num_timesteps = int(self.pipeline.scheduler.config.num_train_timesteps)
        assert cond.pooled is not None  # `encode_texts` always gives it
        prediction: Tensor = self.denoiser(
            hidden_states=latents.to(dtype),
            timestep=sigma.float() * num_timesteps,
            encoder_hidden_states=cond.embeds.to(dtype),
            pooled_projections=cond.pooled.to(dtype),
            return_dict=False,
        )[0]
        return prediction

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the two CLIP encoders and T5, if there is one; S is CLIP's length plus T5's."""
        pipeline = self.pipeline
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        clip_length = int(pipeline.tokenizer_max_length)
        # CLIP's attention mask ends with the end token. Both encoders' tokens share one position,
        # so it is real if either has text there.
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
            mask[:, :clip_length] |= _real_tokens(tokenizer, texts, clip_length, mask.device)
        if pipeline.text_encoder_3 is not None:
            length = self.max_sequence_length
            real = _real_tokens(pipeline.tokenizer_3, texts, length, mask.device)
            mask[:, clip_length:] = real
        return Conditioning(embeds, pooled, mask)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the latent scaling and runs the decoder."""
        config = self.pipeline.vae.config
        latents = latents / config.scaling_factor + config.shift_factor
        images: Tensor = self.pipeline.vae.decode(
            latents.to(self.pipeline.vae.dtype), return_dict=False
        )[0]
        return images.float() / 2 + 0.5

    def sigmas(self, num_steps: int) -> Tensor:
        """Noise levels from 1 to 0 under `sigma_spacing`, shape (num_steps + 1,) fp32."""
        scheduler = self.pipeline.scheduler
        dynamic = scheduler.config.use_dynamic_shifting
        mu = resolution_mu(scheduler, self._num_image_tokens) if dynamic else None
        return scheduler_sigmas(scheduler, num_steps, self.sigma_spacing, mu=mu)

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Image tokens come first in SD3's joint attention, then CLIP's, then T5's."""
        return TokenLayout(
            num_image=self._num_image_tokens,
            num_text=cond.embeds.shape[1],
            image_first=True,
            text_mask=cond.mask,
        )

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The pretrained model: adapters switched off, or a frozen copy for full fine-tuning.

        The copy is read from `pretrained`, not taken from the weights of the moment, so it is the
        same whenever it is first needed, also after a resume. It then stays in memory.
        """
        if not self.full_finetuning:
            with adapters_disabled(self.transformer):
                yield
            return
        if not self._reference:
            self._reference.append(_load_transformer(self._source))
        self._reference[0].to(self.device)
        before, self._inside_reference = self._inside_reference, True
        try:
            yield
        finally:
            self._inside_reference = before

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes adapters as a diffusers LoRA file, or after full fine-tuning a whole pipeline.

        Load the first with ``pipeline.load_lora_weights(folder)``: rank and alpha travel in the
        file's metadata. Load the second as any pipeline.

        Args:
            folder: Created if absent.
        """
        if self.full_finetuning:
            self.pipeline.save_pretrained(folder, safe_serialization=True)
            return
        config = self.transformer.peft_config[ADAPTER]
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=lora_state_dict(self.transformer),
            transformer_lora_adapter_metadata=config.to_dict(),
        )

    @property
    def _num_image_tokens(self) -> int:
        side: int = self._latent_size // int(self.transformer.config.patch_size)
        return side * side

    def _check_resolution(self, resolution: int | None) -> int:
        """Latent height and width for a resolution in pixels."""
        config = self.transformer.config
        pixels, patch = int(self.pipeline.vae_scale_factor), int(config.patch_size)
        largest = pixels * patch * int(config.pos_embed_max_size)
        if resolution is None:
            return int(config.sample_size)
        if resolution < 1 or resolution % (pixels * patch) or resolution > largest:
            raise ValueError(
                f"resolution={resolution}; this model takes multiples of {pixels * patch} pixels "
                f"up to {largest}"
            )
        return resolution // pixels


def _load_pipeline(source: str | Path, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    """Loads the pipeline on the CPU, after a look at its index; a T5 that is absent is no error."""
    index = read_model_index(source, StableDiffusion3Pipeline)
    absent: dict[str, Any] = {
        part: None
        for part in ("text_encoder_3", "tokenizer_3")
        if not any(index.get(part) or [None])
    }
    pipeline: StableDiffusion3Pipeline = StableDiffusion3Pipeline.from_pretrained(
        source,
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=isinstance(source, Path),
        **absent,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_transformer(source: str | Path) -> SD3Transformer2DModel:
    """Loads a frozen fp32 transformer, the reference of full fine-tuning."""
    transformer: SD3Transformer2DModel = SD3Transformer2DModel.from_pretrained(
        source,
        subfolder="transformer",
        torch_dtype=torch.float32,
        use_safetensors=True,
        local_files_only=isinstance(source, Path),
    )
    return transformer.requires_grad_(False).eval()


def _real_tokens(tokenizer: Any, texts: list[str], length: int, device: torch.device) -> Tensor:
    """Which of `length` positions hold text, start or end tokens, shape (B, length) bool."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    mask: Tensor = tokens.attention_mask.to(device).bool()
    return mask
