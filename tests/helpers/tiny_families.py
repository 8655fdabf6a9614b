"""All families of models with their tiny random pipelines, for tests that hold for each of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from tiny_flux import tiny_flux, tiny_flux2, tiny_flux2_klein
from tiny_pipelines import tiny_sd3
from tiny_qwen_image import tiny_qwen_image
from tiny_sana import tiny_sana
from tiny_unet import tiny_sd15, tiny_sdxl
from tiny_z_image import tiny_z_image

from aegpo import policies
from aegpo.policies.diffusers_policy import DiffusersPolicy


@dataclass(frozen=True)
class Family:
    """One family of models.

    Args:
        name: Its class in `aegpo.policies`.
        pipeline: Makes the tiny pipeline.
        guided: Arguments that switch classifier-free guidance on, {} where there is none.
        sizes: Arguments that keep text and image small.
        oblong: Height and width of images that are no squares.
    """

    name: str
    pipeline: Callable[[], DiffusionPipeline]
    guided: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    oblong: tuple[int, int] = (24, 16)

    @property
    def policy(self) -> type[DiffusersPolicy]:
        """The class."""
        kind: type[DiffusersPolicy] = getattr(policies, self.name)
        return kind

    def arguments(self, folder: Path, **more: Any) -> dict[str, Any]:
        """Arguments of a small policy whose pipeline lies in `folder`."""
        return {"pretrained": str(folder), **self.sizes, **more}

    def built(self, folder: Path, **more: Any) -> DiffusersPolicy:
        """A small policy on a new pipeline, which is saved in `folder`."""
        self.pipeline().save_pretrained(folder)
        return self.policy(**self.arguments(folder, **more))


_SMALL = {"resolution": 16, "max_sequence_length": 32}

FAMILIES = [
    Family("StableDiffusion", tiny_sd15, {"guidance_scale": 3.0}, oblong=(40, 24)),
    Family("StableDiffusionXL", tiny_sdxl, {"guidance_scale": 3.0}, oblong=(40, 24)),
    Family("StableDiffusion3", tiny_sd3, {"guidance_scale": 3.0}, {"max_sequence_length": 8}),
    Family("Flux", tiny_flux, {"true_cfg_scale": 3.0}, _SMALL),
    Family("Flux2", tiny_flux2, {}, _SMALL),
    Family("Flux2Klein", tiny_flux2_klein, {"guidance_scale": 3.0}, _SMALL),
    Family("QwenImage", tiny_qwen_image, {"true_cfg_scale": 3.0}, _SMALL),
    Family("Sana", tiny_sana, {"guidance_scale": 3.0}, {"max_sequence_length": 32}, (64, 32)),
    Family("ZImage", tiny_z_image, {"guidance_scale": 2.0}, _SMALL),
]


def few_families() -> list[Family]:
    """Three, for what is one code in all of them: a U-Net, and two kinds of transformer.

    All with ALL_FAMILIES in the environment.
    """
    some = ("StableDiffusion", "StableDiffusion3", "Flux")
    return [one for one in FAMILIES if one.name in some or "ALL_FAMILIES" in os.environ]
