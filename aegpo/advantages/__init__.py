"""Advantages: rewards compared with those of the same group."""

from aegpo.advantages.group_relative import Advantages, GroupRelative
from aegpo.advantages.per_reward import PerReward
from aegpo.advantages.shuffled import ShuffledRewards

__all__ = ["Advantages", "GroupRelative", "PerReward", "ShuffledRewards"]
