"""A tiny SANA pipeline with random weights."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from aegpo.tiny.parts import WORDS, ready
from aegpo.tiny.qwen_image import byte_pairs


def tiny_gemma_tokenizer() -> GemmaTokenizer:
    """Gemma's tokenizer with few words, made in memory; other letters are bytes."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)))
    vocabulary = {special: i for i, special in enumerate(specials)}
    words, merges = byte_pairs(WORDS, "▁")
    vocabulary |= {word: len(vocabulary) + i for word, i in words.items()}
    return GemmaTokenizer(vocab=vocabulary, merges=merges)


def tiny_sana(*, seed: int = 0) -> SanaPipeline:
    """A SANA pipeline of ~0.1 M parameters, with the DPM-Solver that SANA is published with.

    The autoencoder makes height and width 4 times smaller and has 4 channels, patches are single
    latents: images of 32 pixels are latents (4, 8, 8) and 64 image tokens.

    Args:
        seed: Of the random weights.

    Returns:
        The pipeline, on the CPU.
    """
    tokenizer = tiny_gemma_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = Gemma2Model(config)
        transformer = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=8,
        )
        vae = AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.4,
        )
    pipeline = SanaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
    return ready(pipeline)
