"""Rollouts: prompts in, a tree of images out."""

from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.rollout.loop import rollout
from aegpo.rollout.tree import RolloutTree, Transitions

__all__ = ["RolloutTree", "Transitions", "deterministic_rollout", "rollout"]
