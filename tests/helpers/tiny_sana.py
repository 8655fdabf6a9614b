"""The tiny pipeline of `aegpo.tiny.sana`, in a folder."""

from __future__ import annotations

from pathlib import Path

from aegpo.tiny.sana import tiny_sana

__all__ = ["save_tiny_sana", "tiny_sana"]


def save_tiny_sana(folder: Path, *, seed: int = 0) -> Path:
    """Write `tiny_sana` to a folder (created if absent) and return the folder."""
    tiny_sana(seed=seed).save_pretrained(folder, safe_serialization=True)
    return folder
