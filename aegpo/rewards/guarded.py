"""A reward call that can hurt only the images it was about: what fails is missing, never zero."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.answers import UnusableAnswer, as_scores
from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.group import rows_by_prompt
from aegpo.rewards.time_limit import TookTooLong, within
from aegpo.utilities.halving import is_out_of_memory

PAUSE = 0.5
"""Seconds before a call that an operating system or a network refused is made once more."""

_TELL: ContextVar[Callable[[str], object] | None] = ContextVar("tell", default=None)


@contextmanager
def telling(tell: Callable[[str], object]) -> Iterator[None]:
    """Inside, and in this thread alone, what is to be warned of is told to somebody instead.

    Args:
        tell: Is given each line.
    """
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


def guarded_scores(
    reward: Reward, images: Tensor | None, prompts: list[str], metadata: list[dict[str, Any]]
) -> Scores:
    """Score images; what fails twice, or is not finite, becomes NaN and a warning.

    The reward gets copies, so that it may write into them, and computes outside autocast, whatever
    the precision of the training is. A call that raises, or returns no scores, is made once more,
    and then prompt by prompt, so that a judge that was away for a moment costs nothing and a prompt
    that it cannot read costs no other. A call that takes longer than the reward's `time_limit`
    allows for its images is given up, and made again prompt by prompt.

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
    if len(prompts) == 0:  # a rank may have no image; no reward is asked about nothing
        return _prompt_by_prompt(reward, images, prompts, metadata, None)
    scores, failure = _tried(reward, images, prompts, metadata)
    if scores is None and not isinstance(failure, TookTooLong):
        if isinstance(failure, OSError):  # of a network, mostly, which may be back in a moment
            time.sleep(PAUSE)
        scores, again = _tried(reward, images, prompts, metadata)
        if scores is not None:
            _warn(reward, f"{_told(failure)}; the second try went well")
        failure = again
    if scores is None:
        return _prompt_by_prompt(reward, images, prompts, metadata, failure)
    finite = scores.total.isfinite()
    if not bool(finite.all()):
        count = int((~finite).sum())
        _warn(reward, f"has {count} of {len(prompts)} scores that are not finite; counted missing")
    return Scores(scores.total.where(finite, float("nan")), scores.parts)


def _prompt_by_prompt(
    reward: Reward,
    images: Tensor,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    failure: BaseException | None,
) -> Scores:
    """The scores of one call a prompt, NaN where it fails, after a call about all of them did."""
    missing = torch.full((len(prompts),), float("nan"), device=images.device)
    scores = Scores(missing, dict.fromkeys(reward.part_names, missing))
    groups = rows_by_prompt(prompts)
    if isinstance(failure, TookTooLong) and len(groups) == 1:
        groups = {}  # the call that was given up was this one
    for rows in groups.values():
        where = torch.tensor(rows, device=images.device)
        texts, about = [prompts[row] for row in rows], [metadata[row] for row in rows]
        own, reason = _tried(reward, images[where], texts, about)
        if own is None:
            failure = reason
        else:
            scores = _put(scores, where, own)
    if bool(scores.total.isnan().any()):
        lost = int(scores.total.isnan().sum())
        _warn(reward, f"{_told(failure)}; {lost} of {len(prompts)} images counted missing", 4)
    return scores


def _tried(
    reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
) -> tuple[Scores | None, BaseException | None]:
    """One call: its scores, or None and what went wrong."""
    count, device = len(prompts), images.device
    # Copied here: a call that was given up goes on with what it has.
    given = images.detach().clone(), list(prompts), [dict(one) for one in metadata]

    def ask() -> Scores:
        place: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":  # a thread starts on the first GPU, whichever this rank's is
            place = torch.cuda.device(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), place:
            return reward.with_parts(*given)

    try:
        limit = reward.time_limit
        total, parts = ask() if limit is None else within(limit * count, ask)
        return Scores(
            as_scores(total, count, device),
            {name: as_scores(parts[name], count, device) for name in reward.part_names},
        ), None
    except (Exception, SystemExit) as error:  # a user's reward may raise anything, or sys.exit()
        if is_out_of_memory(error):
            raise
        return None, error


def _told(error: BaseException | None) -> str:
    """What went wrong, as the warning has it."""
    says = isinstance(error, UnusableAnswer | TookTooLong)
    return str(error) if says else f"raised {error!r}"


def _put(scores: Scores, where: Tensor, own: Scores) -> Scores:
    """The scores with those of some images in their places."""
    total = own.total.where(own.total.isfinite(), float("nan"))
    return Scores(
        scores.total.index_copy(0, where, total),
        {name: part.index_copy(0, where, own.parts[name]) for name, part in scores.parts.items()},
    )


def _warn(reward: Reward, what: str, level: int = 3) -> None:
    text, tell = f"reward {reward.name!r} {what}", _TELL.get()
    if tell is None:
        warnings.warn(text, stacklevel=level)
    else:
        tell(text)
