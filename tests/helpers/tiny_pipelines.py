"""Tiny pipelines in folders: the real diffusers classes with random weights, of `aegpo.tiny`."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusion3Pipeline

from aegpo.tiny.parts import WORDS, tiny_clip_text_encoder, tiny_clip_tokenizer
from aegpo.tiny.stable_diffusion3 import tiny_sd3

__all__ = [
    "WORDS",
    "load_tiny_sd3",
    "save_tiny_sd3",
    "tiny_clip_text_encoder",
    "tiny_clip_tokenizer",
    "tiny_sd3",
]


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
