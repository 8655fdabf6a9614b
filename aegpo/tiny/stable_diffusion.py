"""Tiny Stable Diffusion 1.5 and XL pipelines with random weights, of the real diffusers classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel

from aegpo.tiny.parts import VAE, WORDS, ready, tiny_clip_text_encoder, tiny_clip_tokenizer

BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""The noise schedule that SD 1.5 and SDXL were trained with."""


def tiny_sd15(
    *, seed: int = 0, prediction_type: str = "epsilon", set_alpha_to_one: bool = False
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline like 1.5: attention at two of three levels, PNDM scheduler.

    Latents are (4, 16, 16), images 32 x 32 pixels; text has 16 tokens. Two cross-attention blocks
    and the middle: 256 and 64 image tokens above, 16 in the middle.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_clip_tokenizer()
        wide = tiny_clip_text_encoder(tokenizer)
        encoder = CLIPTextModel(wide.config)
        unet = _unet(
            block_out_channels=(8, 16, 16),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
        )
        vae = AutoencoderKL(**VAE, sample_size=32, scaling_factor=0.7)
    return ready(
        StableDiffusionPipeline(
            unet=unet,
            vae=vae,
            text_encoder=encoder,
            tokenizer=tokenizer,
            scheduler=PNDMScheduler(
                **BETAS,
                skip_prk_steps=True,
                set_alpha_to_one=set_alpha_to_one,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def tiny_sdxl(*, seed: int = 0, force_zeros: bool = True) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline: no attention at the top, two encoders, Euler scheduler.

    Latents are (4, 16, 16), images 32 x 32 pixels; text has 16 tokens. Attention over 64 image
    tokens at the lower level and in the middle.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The second tokenizer does not know "circle" and spells it.
        others = [word for word in WORDS if word != "circle"]
        tokenizers = [tiny_clip_tokenizer(), tiny_clip_tokenizer(words=others)]
        projecting = tiny_clip_text_encoder(tokenizers[1])
        first = CLIPTextModel(tiny_clip_text_encoder(tokenizers[0]).config)
        unet = _unet(
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
        vae = AutoencoderKL(**VAE, sample_size=32, scaling_factor=0.5)
    # As published: a Euler scheduler that was saved with the settings of DDIM beside its own.
    with torch.device("cpu"):
        scheduler = EulerDiscreteScheduler.from_config(
            {**BETAS, "clip_sample": False, "set_alpha_to_one": False}
        )
    return ready(
        StableDiffusionXLPipeline(
            unet=unet,
            vae=vae,
            text_encoder=first,
            tokenizer=tokenizers[0],
            text_encoder_2=projecting,
            tokenizer_2=tokenizers[1],
            scheduler=scheduler,
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )
    )


def _unet(**differences: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        **differences,
    )
    # Untrained attention is nearly uniform; larger queries and keys make it uneven.
    for name, parameter in unet.named_parameters():
        if "to_q." in name or "to_k." in name:
            parameter.data *= 4
    return unet
