"""The tiny pipeline of `aegpo.tiny.qwen_image`, in a folder."""

from __future__ import annotations

from pathlib import Path

from aegpo.tiny.qwen_image import byte_pairs, tiny_qwen_image, tiny_qwen_tokenizer

__all__ = ["byte_pairs", "save_tiny_qwen_image", "tiny_qwen_image", "tiny_qwen_tokenizer"]


def save_tiny_qwen_image(folder: Path, *, seed: int = 0) -> Path:
    """Write `tiny_qwen_image` to a folder (created if absent) and return the folder."""
    tiny_qwen_image(seed=seed).save_pretrained(folder, safe_serialization=True)
    return folder
