"""Policies: text-to-image models as the method sees them.

A family of models is imported on first use, so that naming the base class stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning

if TYPE_CHECKING:
    from aegpo.policies.families.flux import Flux
    from aegpo.policies.families.flux2 import Flux2, Flux2Klein
    from aegpo.policies.families.qwen_image import QwenImage
    from aegpo.policies.families.sana import Sana
    from aegpo.policies.families.stable_diffusion import StableDiffusion
    from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
    from aegpo.policies.families.stable_diffusion_xl import StableDiffusionXL
    from aegpo.policies.families.z_image import ZImage

__all__ = [
    "Conditioning",
    "Flux",
    "Flux2",
    "Flux2Klein",
    "Policy",
    "QwenImage",
    "Sana",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "ZImage",
]

_FAMILIES = {
    "Flux": "families.flux",
    "Flux2": "families.flux2",
    "Flux2Klein": "families.flux2",
    "QwenImage": "families.qwen_image",
    "Sana": "families.sana",
    "StableDiffusion": "families.stable_diffusion",
    "StableDiffusion3": "families.stable_diffusion3",
    "StableDiffusionXL": "families.stable_diffusion_xl",
    "ZImage": "families.z_image",
}


def __getattr__(name: str) -> Any:
    if name not in _FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"aegpo.policies.{_FAMILIES[name]}"), name)
