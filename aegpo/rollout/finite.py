"""Predictions that are not finite, and what made them so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

ORDINARY = 100.0
"""Trained weights beyond this are those of a rate that exploded."""


class Trained(Protocol):
    """A policy, as far as its trained tensors go."""

    def trainable_state_dict(self) -> Mapping[str, Tensor]:
        """The trained tensors by name."""


def require_finite(policy: Trained, latents: Tensor, watched: bool) -> None:
    """Raise if a policy predicts numbers that are not finite, for all of its images.

    One image that is not finite is a missing reward and costs no other. Where entropy is recorded,
    one is too many: a curve of it would be the first to fail, and say nothing of the cause.

    Args:
        policy: The policy that drew them.
        latents: Latents at the end of a rollout, shape (n, ...).
        watched: Whether entropy was recorded.

    Raises:
        RuntimeError: If that is so.
    """
    lost = int((~latents.isfinite().flatten(1).all(dim=1)).sum())
    if lost == 0 or (lost < len(latents) and not watched):
        return
    share = "all" if lost == len(latents) else str(lost)
    raise RuntimeError(
        f"the policy predicts values that are not finite, for {share} of {len(latents)} images: "
        f"{exploded(policy)}"
    )


def exploded(policy: Trained) -> str:
    """What its trained weights say of the cause of numbers that are not finite, and what to do."""
    name, size = largest_weight(policy.trainable_state_dict())
    if size <= ORDINARY:
        return (
            f"no trained weight is above {size:.3g}, so it is not the rate; load the policy with "
            "dtype: float32, or dtype: bfloat16 where it was float16"
        )
    what = f"is {size:.3g}" if math.isfinite(size) else "is not finite"
    return (
        f"the largest trained weight {what} ({name}); lower model.optimizer.lr, and go on from an "
        "earlier checkpoint if there is one"
    )


def largest_weight(weights: Mapping[str, Tensor]) -> tuple[str, float]:
    """Name and size of the largest weight; what is not finite is larger than all.

    Args:
        weights: Tensors by name.

    Returns:
        The name, empty without weights, and the largest absolute value, infinite if one is not
        finite.
    """
    sizes = {
        name: float(weight.detach().abs().max().nan_to_num(nan=math.inf, posinf=math.inf))
        for name, weight in weights.items()
        if weight.numel() > 0 and weight.is_floating_point()
    }
    return max(sizes.items(), key=lambda one: one[1], default=("", 0.0))
