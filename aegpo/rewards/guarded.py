"""A reward call that costs no run: what fails is missing, never zero."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.base import Reward, Scores


def guarded_scores(
    reward: Reward, images: Tensor | None, prompts: list[str], metadata: list[dict[str, Any]]
) -> Scores:
    """Score images; an exception or a score that is not finite becomes NaN and a warning.

    Args:
        reward: The reward.
        images: Shape (N, 3, H, W) in [0, 1].
        prompts: N prompts.
        metadata: N dicts.

    Returns:
        fp32 scores on the images' device, each of shape (N,), NaN where the reward failed; all of
        the reward's parts are there, whatever happened.

    Raises:
        ValueError: If there are no images, or the reward returns another number of scores: a
            mistake in its code, not a bad image.
    """
    if images is None:
        raise ValueError(f"reward {reward.name!r} needs decoded images, but the rollout has none")
    missing = torch.full((len(prompts),), float("nan"), device=images.device)
    try:
        total, parts = reward.with_parts(images, prompts, metadata)
    except Exception as error:  # a user's reward may raise anything
        warnings.warn(f"reward {reward.name!r} raised {error!r}; counted missing", stacklevel=2)
        return Scores(missing, dict.fromkeys(reward.part_names, missing))
    total = torch.as_tensor(total, dtype=torch.float32, device=images.device)
    if total.shape != missing.shape:
        raise ValueError(
            f"reward {reward.name!r} returned shape {tuple(total.shape)} for {len(prompts)} "
            f"images; it must return one score per image, shape ({len(prompts)},)"
        )
    finite = total.isfinite()
    if not bool(finite.all()):
        count = int((~finite).sum())
        warnings.warn(
            f"reward {reward.name!r}: {count} of {len(prompts)} scores are not finite; counted "
            "missing",
            stacklevel=2,
        )
    return Scores(torch.where(finite, total, missing), parts)
