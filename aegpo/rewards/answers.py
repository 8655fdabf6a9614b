"""What a reward may return, and the scores that it means."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number

import numpy as np
import torch
from torch import Tensor

ACCEPTED = (
    "a tensor, an array or a list with one number for each image, None or NaN where one is "
    "missing, or a tuple of that and anything else"
)


class UnusableAnswer(ValueError):
    """A reward returned something that no scores can be read from."""


def as_scores(answer: object, count: int, device: torch.device) -> Tensor:
    """Read the scores of `count` images from what a reward returned.

    Args:
        answer: A tensor, an array or a sequence with one number for each image, None or NaN where
            one is missing; or a tuple whose first entry is one of these and whose rest, such as
            details of each score, is not looked at.
        count: Number of images N.
        device: Where the scores are wanted.

    Returns:
        fp32 scores without a graph, shape (N,); what is not finite stays as it is.

    Raises:
        UnusableAnswer: If it is anything else, or not one number for each image.
    """
    given = answer
    if isinstance(answer, tuple) and len(answer) > 0 and not _is_number(answer[0]):
        given = answer[0]  # (scores, details), as public scorers return them
    try:
        if isinstance(given, Sequence) and not isinstance(given, str | bytes):
            given = [float("nan") if value is None else float(value) for value in given]
        if not isinstance(given, Tensor | np.ndarray | list):
            raise TypeError
        made = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
        if made.is_complex() or made.layout != torch.strided:
            raise TypeError  # torch would drop the imaginary part, and compares no sparse tensors
        scores = made.detach().to(device, torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise UnusableAnswer(f"returned {_describe(answer)}; it must return {ACCEPTED}") from None
    if scores.shape != (count,):
        raise UnusableAnswer(
            f"returned shape {tuple(scores.shape)} for {count} images; it must return one score "
            f"per image, shape ({count},)"
        )
    return scores


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, Number) or getattr(value, "ndim", None) == 0


def _describe(answer: object) -> str:
    """The answer's type, and the types of a tuple's entries."""
    if answer is None:
        return "None"
    if isinstance(answer, tuple):
        return f"a tuple ({', '.join(type(entry).__name__ for entry in answer)})"
    return f"a {type(answer).__name__}, {answer!r:.40}"
