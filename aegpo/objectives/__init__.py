"""Objectives: what the updates minimize, and which weights draw the rollouts.

Without one the module takes `PolicyGradient`, with its own arguments. Others are named in the
configuration by their `class_path`.
"""

from aegpo.objectives.base import Experience, Objective
from aegpo.objectives.nft import NFT
from aegpo.objectives.policy_gradient import PolicyGradient

__all__ = ["NFT", "Experience", "Objective", "PolicyGradient"]
