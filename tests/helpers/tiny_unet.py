"""Tiny Stable Diffusion 1.5 and XL pipelines in folders, of `aegpo.tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aegpo.tiny.stable_diffusion import BETAS, tiny_sd15, tiny_sdxl

__all__ = ["BETAS", "save_tiny_sd15", "save_tiny_sdxl", "tiny_sd15", "tiny_sdxl"]


def save_tiny_sd15(folder: Path, **arguments: Any) -> Path:
    """Writes `tiny_sd15` to a folder (created if absent) and returns the folder."""
    tiny_sd15(**arguments).save_pretrained(folder, safe_serialization=True)
    return folder


def save_tiny_sdxl(folder: Path, **arguments: Any) -> Path:
    """Writes `tiny_sdxl` to a folder (created if absent) and returns the folder."""
    tiny_sdxl(**arguments).save_pretrained(folder, safe_serialization=True)
    return folder
