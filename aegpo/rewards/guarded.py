"""A reward call that costs no run: what fails is missing, never zero."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.base import Reward


def guarded_scores(
    reward: Reward, images: Tensor | None, prompts: list[str], metadata: list[dict[str, Any]]
) -> Tensor:
    """Score images; an exception or a score that is not finite becomes NaN and a warning.

    Args:
        reward: The reward.
        images: Shape (N, 3, H, W) in [0, 1].
        prompts: N prompts.
        metadata: N dicts.

    Returns:
        fp32 scores on the images' device, shape (N,), NaN where the reward failed.

    Raises:
        ValueError: If there are no images, or the reward returns another number of scores: a
            mistake in its code, not a bad image.
    """
    if images is None:
        raise ValueError(f"reward {reward.name!r} needs decoded images, but the rollout has none")
    try:
        scores = reward(images, prompts, metadata)
    except Exception as error:  # a user's reward may raise anything
        warnings.warn(f"reward {reward.name!r} raised {error!r}; counted missing", stacklevel=2)
        return torch.full((len(prompts),), float("nan"), device=images.device)
    scores = torch.as_tensor(scores, dtype=torch.float32, device=images.device)
    if scores.shape != (len(prompts),):
        raise ValueError(
            f"reward {reward.name!r} returned shape {tuple(scores.shape)} for {len(prompts)} "
            f"images; it must return one score per image, shape ({len(prompts)},)"
        )
    finite = scores.isfinite()
    if not bool(finite.all()):
        count = int((~finite).sum())
        warnings.warn(
            f"reward {reward.name!r}: {count} of {len(prompts)} scores are not finite; counted "
            "missing",
            stacklevel=2,
        )
    return torch.where(finite, scores, torch.full_like(scores, float("nan")))
