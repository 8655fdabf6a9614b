"""Tiny pipelines with random weights: the real diffusers classes, a few hundred kilobytes each.

Every builder is deterministic (its weights depend on `seed` alone) and leaves torch's global
random state as it found it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

WORDS: tuple[str, ...] = (
    *("a", "an", "and", "one", "two", "three", "four", "the", "of", "to", "on"),
    *("red", "green", "blue", "yellow", "purple", "orange", "circle", "square", "triangle"),
    *("circles", "squares", "triangles", "star", "stars", "left", "right", "above", "below"),
)
"""Words that the tiny tokenizer knows as single tokens; any other text falls back to letters."""


def tiny_clip_tokenizer(words: Sequence[str] = WORDS, max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer made in memory.

    Args:
        words: Lower-case ASCII words that become one token each.
        max_length: Tokens per prompt, start and end tokens included.
    """
    letters = _byte_letters()
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for letter in letters:
        vocabulary[letter + "</w>"] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def tiny_clip_text_encoder(tokenizer: CLIPTokenizer, width: int = 16) -> nn.Module:
    """A two-layer CLIP text encoder of the given width, with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


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
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=2 * sample_size,
            scaling_factor=1.5,
            shift_factor=0.06,
            use_quant_conv=False,
            use_post_quant_conv=False,
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
    for module in (transformer, vae, *encoders):
        module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_sd3(
    folder: Path, *, seed: int = 0, dual_attention: bool = False, sample_size: int = 8
) -> Path:
    """Write `tiny_sd3` to a folder (created if absent) and return the folder."""
    pipeline = tiny_sd3(seed=seed, dual_attention=dual_attention, sample_size=sample_size)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def load_tiny_sd3(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of such a folder as diffusers itself loads it, in eval mode."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        module.eval()
    pipeline.text_encoder_2.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _byte_letters() -> list[str]:
    """The 256 printable letters that byte-level tokenizers write for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]
