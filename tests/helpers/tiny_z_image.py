"""The tiny pipeline of `aegpo.tiny.z_image`, in a folder."""

from __future__ import annotations

from pathlib import Path

from aegpo.tiny.z_image import tiny_z_image

__all__ = ["save_tiny_z_image", "tiny_z_image"]


def save_tiny_z_image(folder: Path, *, seed: int = 0) -> Path:
    """Write `tiny_z_image` to a folder (created if absent) and return the folder."""
    tiny_z_image(seed=seed).save_pretrained(folder, safe_serialization=True)
    return folder
