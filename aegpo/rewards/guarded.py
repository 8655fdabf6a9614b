"""A reward call that can hurt only the images it was about: what fails is missing, never zero."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.answers import UnusableAnswer, as_scores
from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.group import rows_by_prompt


def guarded_scores(
    reward: Reward, images: Tensor | None, prompts: list[str], metadata: list[dict[str, Any]]
) -> Scores:
    """Score images; what fails twice, or is not finite, becomes NaN and a warning.

    The reward gets copies, so that it may write into them, and computes outside autocast, whatever
    the precision of the training is. A call that raises, or returns no scores, is made once more,
    and then prompt by prompt, so that a judge that was away for a moment costs nothing and a prompt
    that it cannot read costs no other.

    Args:
        reward: The reward.
        images: Shape (N, 3, H, W) in [0, 1].
        prompts: N prompts.
        metadata: N dicts.

    Returns:
        fp32 scores on the images' device, each of shape (N,), NaN where the reward failed; all of
        the reward's parts are there, whatever happened.

    Raises:
        ValueError: If there are no images.
        MemoryError: If memory ran out (or torch's OutOfMemoryError): no fault of an image.
    """
    if images is None:
        raise ValueError(f"reward {reward.name!r} needs decoded images, but the rollout has none")
    missing = torch.full((len(prompts),), float("nan"), device=images.device)
    if len(prompts) == 0:  # a rank may have no image; no reward is asked about nothing
        return Scores(missing, dict.fromkeys(reward.part_names, missing))
    scores, failure = _tried(reward, images, prompts, metadata)
    if scores is None:
        scores, again = _tried(reward, images, prompts, metadata)
        if scores is not None:
            _warn(reward, f"{failure}; the second try went well")
    if scores is None:
        scores = Scores(missing, dict.fromkeys(reward.part_names, missing))
        for rows in rows_by_prompt(prompts).values():
            where = torch.tensor(rows, device=images.device)
            texts, about = [prompts[row] for row in rows], [metadata[row] for row in rows]
            own, reason = _tried(reward, images[where], texts, about)
            if own is None:
                again = reason
            else:
                scores = _put(scores, where, own)
        if bool(scores.total.isnan().any()):
            lost = int(scores.total.isnan().sum())
            _warn(reward, f"{again}; {lost} of {len(prompts)} images counted missing")
        return scores
    finite = scores.total.isfinite()
    if not bool(finite.all()):
        count = int((~finite).sum())
        _warn(reward, f"has {count} of {len(prompts)} scores that are not finite; counted missing")
    return Scores(torch.where(finite, scores.total, missing), scores.parts)


def _tried(
    reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
) -> tuple[Scores | None, str]:
    """One call: its scores, or None and what went wrong."""
    count, device = len(prompts), images.device
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            total, parts = reward.with_parts(
                images.detach().clone(), list(prompts), [dict(one) for one in metadata]
            )
        return Scores(
            as_scores(total, count, device),
            {name: as_scores(parts[name], count, device) for name in reward.part_names},
        ), ""
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a user's reward may raise anything, or sys.exit()
        return None, str(error) if isinstance(error, UnusableAnswer) else f"raised {error!r}"


def _put(scores: Scores, where: Tensor, own: Scores) -> Scores:
    """The scores with those of some images in their places."""
    total = own.total.where(own.total.isfinite(), float("nan"))
    return Scores(
        scores.total.index_copy(0, where, total),
        {name: part.index_copy(0, where, own.parts[name]) for name, part in scores.parts.items()},
    )


def _warn(reward: Reward, what: str) -> None:
    warnings.warn(f"reward {reward.name!r} {what}", stacklevel=3)
