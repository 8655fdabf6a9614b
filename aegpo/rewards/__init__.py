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
from aegpo.rewards.threshold import Threshold
from aegpo.rewards.weighted_sum import WeightedSum

if TYPE_CHECKING:
    from aegpo.rewards.geneval.reward import GenEvalReward
    from aegpo.rewards.learned.aesthetic import AestheticV2
    from aegpo.rewards.learned.hpsv2 import HPSv21
    from aegpo.rewards.learned.image_reward import ImageReward
    from aegpo.rewards.learned.open_clip_similarity import CLIPScore, OpenCLIPSimilarity
    from aegpo.rewards.learned.pickscore import PickScore
    from aegpo.rewards.ocr import OCRAccuracy
    from aegpo.rewards.service.remote_reward import RemoteReward
    from aegpo.rewards.shapes.judge import ShapesJudge
    from aegpo.rewards.shapes.match import ShapesMatch
    from aegpo.rewards.vlm_judge import VLMJudge

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
    "RemoteReward",
    "Reward",
    "ShapesJudge",
    "ShapesMatch",
    "Threshold",
    "VLMJudge",
    "WeightedSum",
]

# Loaded on first use: the Shapes world imports this package, and learned rewards import libraries
# that take seconds.
_ELSEWHERE = {
    "AestheticV2": "aegpo.rewards.learned.aesthetic",
    "CLIPScore": "aegpo.rewards.learned.open_clip_similarity",
    "GenEvalReward": "aegpo.rewards.geneval.reward",
    "HPSv21": "aegpo.rewards.learned.hpsv2",
    "ImageReward": "aegpo.rewards.learned.image_reward",
    "OCRAccuracy": "aegpo.rewards.ocr",
    "OpenCLIPSimilarity": "aegpo.rewards.learned.open_clip_similarity",
    "PickScore": "aegpo.rewards.learned.pickscore",
    "RemoteReward": "aegpo.rewards.service.remote_reward",
    "ShapesJudge": "aegpo.rewards.shapes.judge",
    "ShapesMatch": "aegpo.rewards.shapes.match",
    "VLMJudge": "aegpo.rewards.vlm_judge",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
