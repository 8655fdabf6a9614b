"""Tiny FLUX.1 and FLUX.2 pipelines with random weights, of `aegpo.tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from aegpo.tiny.flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from aegpo.tiny.parts import ready

__all__ = ["load_tiny", "tiny_flux", "tiny_flux2", "tiny_flux2_klein"]


def load_tiny(folder: Path) -> Any:
    """The pipeline of a folder as diffusers itself loads it, in evaluation mode."""
    return ready(DiffusionPipeline.from_pretrained(folder, local_files_only=True))
