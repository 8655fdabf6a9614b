"""A tiny Stable Diffusion 3 pipeline with random weights."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from aegpo.tiny.parts import FLOW_VAE, ready, tiny_clip_text_encoder, tiny_clip_tokenizer


def tiny_sd3(
    *,
    seed: int = 0,
    num_layers: int = 2,
    dual_attention: bool = False,
    sample_size: int = 8,
    shift: float = 3.0,
) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline of ~0.1 M parameters: two CLIP encoders, no T5.

    Images are 2 * sample_size pixels, latents (4, sample_size, sample_size), patches 2x2: with
    the default there are 16 image tokens. Every module is in eval mode.

    Args:
        seed: Of the random weights.
        num_layers: Joint transformer blocks.
        dual_attention: Give the first block the second, image-only attention of SD3.5 Medium.
        sample_size: Latent height and width.
        shift: The scheduler's static shift.

    Returns:
        The pipeline, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizers = [tiny_clip_tokenizer() for _ in range(2)]
        encoders = [tiny_clip_text_encoder(tokenizer) for tokenizer in tokenizers]
        transformer = SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=num_layers,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
            dual_attention_layers=(0,) if dual_attention else (),
            qk_norm="rms_norm" if dual_attention else None,
        )
        vae = AutoencoderKL(
            **FLOW_VAE, sample_size=2 * sample_size, scaling_factor=1.5, shift_factor=0.06
        )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return ready(pipeline)
