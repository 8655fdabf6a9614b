"""Rollouts: prompts in, a tree of images out."""

from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.rollout.loop import rollout
from aegpo.rollout.tree import RolloutTree, Transitions
from aegpo.rollout.warmup import RolloutWarmup

__all__ = ["RolloutTree", "RolloutWarmup", "Transitions", "deterministic_rollout", "rollout"]
