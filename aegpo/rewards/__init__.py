"""Rewards: what an image is worth, higher is better.

A reward of your own is a subclass of `Reward` in any module, named in the configuration by its
`class_path`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aegpo.rewards.base import Reward
from aegpo.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from aegpo.rewards.weighted_sum import WeightedSum

if TYPE_CHECKING:
    from aegpo.rewards.open_clip_similarity import CLIPScore, OpenCLIPSimilarity
    from aegpo.shapes.judge import ShapesJudge
    from aegpo.shapes.match import ShapesMatch

__all__ = [
    "CLIPScore",
    "JpegCompressibility",
    "JpegIncompressibility",
    "OpenCLIPSimilarity",
    "Reward",
    "ShapesJudge",
    "ShapesMatch",
    "WeightedSum",
]

# Loaded on first use: those of the Shapes world import this package, the others large libraries.
_ELSEWHERE = {
    "CLIPScore": "aegpo.rewards.open_clip_similarity",
    "OpenCLIPSimilarity": "aegpo.rewards.open_clip_similarity",
    "ShapesJudge": "aegpo.shapes.judge",
    "ShapesMatch": "aegpo.shapes.match",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
