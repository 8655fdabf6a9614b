"""Objectives: what the updates minimize, and which weights draw the rollouts.

Without one the module takes `PolicyGradient`, with its own arguments. Others are named in the
configuration by their `class_path`.
"""

from aegpo.objectives.base import Experience, Objective
from aegpo.objectives.credit import Credit, DepthCredit, LeafCredit
from aegpo.objectives.forward.agreement import LevelAgreement
from aegpo.objectives.forward.awm import AWM
from aegpo.objectives.forward.nft import NFT
from aegpo.objectives.policy_gradient import PolicyGradient
from aegpo.objectives.pruning import DepthPruning, Pruning, RandomStepPruning, WidthPruning
from aegpo.objectives.samples import LossTerms, Samples
from aegpo.objectives.transition_weights import (
    EqualWeight,
    RatioNorm,
    SensitivityWeight,
    StdWeight,
    TransitionWeight,
)

__all__ = [
    "AWM",
    "NFT",
    "Credit",
    "DepthCredit",
    "DepthPruning",
    "EqualWeight",
    "Experience",
    "LeafCredit",
    "LevelAgreement",
    "LossTerms",
    "Objective",
    "PolicyGradient",
    "Pruning",
    "RandomStepPruning",
    "RatioNorm",
    "Samples",
    "SensitivityWeight",
    "StdWeight",
    "TransitionWeight",
    "WidthPruning",
]
