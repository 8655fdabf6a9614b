"""The noise of siblings where a node parts, correlated as BranchGRPO's paper has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aegpo.noise import KeyedNoise


def check_split_scale(split_scale: float | None) -> None:
    """Raise unless it can be the `split_scale` of a rollout."""
    if split_scale is not None and not (math.isfinite(split_scale) and split_scale > 0):
        raise ValueError(
            f"split_scale={split_scale} must be a finite number above 0 (BranchGRPO's is 4), or "
            "null for siblings that draw independent noise"
        )


def sibling_noise(
    noise: KeyedNoise, keys: Tensor, parent: Tensor, draw: Tensor, split_scale: float
) -> Tensor:
    """Correlates the noise of siblings: (xi_0 + s eta_b) / sqrt(1 + s²), BranchGRPO's split noise.

    The public code of BranchGRPO (arXiv 2509.06040) has s eta_b alone, which is too wide by s and
    no longer what the log-prob is taken of; this is the paper's formula.

    Args:
        noise: The noise of this iteration.
        keys: (n, 3) index, number and step of the nodes of the level.
        parent: (m,) the node that each child comes from.
        draw: (m, ...) each child's own noise eta_b.
        split_scale: s.

    Returns:
        (m, ...) xi_b, in the order of the children.
    """
    parents, child = torch.unique(parent, return_inverse=True)
    shared = noise.normal("split", keys[parents], draw.shape[1:])
    return (shared[child] + split_scale * draw) / math.sqrt(1 + split_scale**2)
