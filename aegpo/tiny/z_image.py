"""A tiny Z-Image pipeline with random weights."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Config, Qwen3Model

from aegpo.tiny.parts import FLOW_VAE, ready
from aegpo.tiny.qwen_image import tiny_qwen_tokenizer


def tiny_z_image(*, seed: int = 0) -> ZImagePipeline:
    """A Z-Image pipeline of ~0.5 M parameters, most of them in its embedding of the timestep.

    The autoencoder halves height and width and has 4 channels; patches are 2x2. Images of 16 pixels
    are latents (4, 8, 8) and 16 image tokens, which the transformer pads to 32; images of 32 pixels
    are 64 tokens without padding, and larger ones have no positions. Neither have captions of more
    than 64 tokens.

    Args:
        seed: Of the random weights.

    Returns:
        The pipeline, on the CPU.
    """
    tokenizer = tiny_qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = Qwen3Model(config)
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[66, 8, 8],
        )
        # Zeros would hide whether padding is attended to.
        torch.nn.init.normal_(transformer.x_pad_token)
        torch.nn.init.normal_(transformer.cap_pad_token)
        vae = AutoencoderKL(**FLOW_VAE, scaling_factor=0.4, shift_factor=0.1)
    pipeline = ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
    return ready(pipeline)
