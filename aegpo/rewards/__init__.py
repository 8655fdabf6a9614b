"""Rewards: what an image is worth, higher is better.

A reward of your own is a subclass of `Reward` in any module, named in the configuration by its
`class_path`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aegpo.rewards.base import Reward
from aegpo.rewards.group import GroupDiversity, GroupReward
from aegpo.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from aegpo.rewards.weighted_sum import WeightedSum

if TYPE_CHECKING:
    from aegpo.shapes.judge import ShapesJudge
    from aegpo.shapes.match import ShapesMatch

__all__ = [
    "GroupDiversity",
    "GroupReward",
    "JpegCompressibility",
    "JpegIncompressibility",
    "Reward",
    "ShapesJudge",
    "ShapesMatch",
    "WeightedSum",
]

# Found here, defined with the Shapes world; loaded on first use, because they import this package.
_ELSEWHERE = {"ShapesJudge": "aegpo.shapes.judge", "ShapesMatch": "aegpo.shapes.match"}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
