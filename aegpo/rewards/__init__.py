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
    from aegpo.rewards.aesthetic import AestheticV2
    from aegpo.rewards.geneval import GenEvalReward
    from aegpo.rewards.hpsv2 import HPSv21
    from aegpo.rewards.image_reward import ImageReward
    from aegpo.rewards.ocr import OCRAccuracy
    from aegpo.rewards.open_clip_similarity import CLIPScore, OpenCLIPSimilarity
    from aegpo.rewards.pickscore import PickScore
    from aegpo.rewards.vlm_judge import VLMJudge
    from aegpo.shapes.judge import ShapesJudge
    from aegpo.shapes.match import ShapesMatch

__all__ = [
    "AestheticV2",
    "CLIPScore",
    "GenEvalReward",
    "GroupDiversity",
    "GroupReward",
    "HPSv21",
    "ImageReward",
    "JpegCompressibility",
    "JpegIncompressibility",
    "OCRAccuracy",
    "OpenCLIPSimilarity",
    "PickScore",
    "Reward",
    "ShapesJudge",
    "ShapesMatch",
    "VLMJudge",
    "WeightedSum",
]

# Loaded on first use: the Shapes world imports this package, and learned rewards import libraries
# that take seconds.
_ELSEWHERE = {
    "AestheticV2": "aegpo.rewards.aesthetic",
    "CLIPScore": "aegpo.rewards.open_clip_similarity",
    "GenEvalReward": "aegpo.rewards.geneval",
    "HPSv21": "aegpo.rewards.hpsv2",
    "ImageReward": "aegpo.rewards.image_reward",
    "OCRAccuracy": "aegpo.rewards.ocr",
    "OpenCLIPSimilarity": "aegpo.rewards.open_clip_similarity",
    "PickScore": "aegpo.rewards.pickscore",
    "ShapesJudge": "aegpo.shapes.judge",
    "ShapesMatch": "aegpo.shapes.match",
    "VLMJudge": "aegpo.rewards.vlm_judge",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
