"""Policies: text-to-image models as the method sees them.

`StableDiffusion3` is imported on first use, so that naming the base class stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning

if TYPE_CHECKING:
    from aegpo.policies.stable_diffusion3 import StableDiffusion3

__all__ = ["Conditioning", "Policy", "StableDiffusion3"]


def __getattr__(name: str) -> object:
    if name == "StableDiffusion3":
        from aegpo.policies.stable_diffusion3 import StableDiffusion3

        return StableDiffusion3
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
