"""Policies: text-to-image models as the method sees them.

A family of models is imported on first use, so that naming the base class stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning

if TYPE_CHECKING:
    from aegpo.policies.flux import Flux
    from aegpo.policies.flux2 import Flux2, Flux2Klein
    from aegpo.policies.stable_diffusion3 import StableDiffusion3

__all__ = ["Conditioning", "Flux", "Flux2", "Flux2Klein", "Policy", "StableDiffusion3"]

_FAMILIES = {
    "Flux": "flux",
    "Flux2": "flux2",
    "Flux2Klein": "flux2",
    "StableDiffusion3": "stable_diffusion3",
}


def __getattr__(name: str) -> Any:
    if name not in _FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"aegpo.policies.{_FAMILIES[name]}"), name)
