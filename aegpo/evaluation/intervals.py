"""Scores of a suite with what its number of prompts can say of their error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from aegpo.evaluation.protocols import Averaging

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """A mean over prompts.

    Attributes:
        mean: The score; NaN if there is none.
        low: Lower end of the 95 % interval over prompts, NaN with fewer than two of them.
        high: Upper end.
        prompts: How many prompts it is of: those with a finite score.
    """

    mean: float
    low: float
    high: float
    prompts: int


def score_of(
    values: Sequence[float], categories: Sequence[str], averaging: Averaging = "prompts"
) -> Score:
    """The score of a suite.

    Prompts are what is drawn anew, so the interval is about other prompts of the same kind; seeds
    are those that were given. Where categories are averaged, prompts are drawn inside each.

    Args:
        values: Mean over the images of each prompt; NaN where none was scored.
        categories: The category of each prompt.
        averaging: How they become one number; "separate" gives the mean over prompts.

    Returns:
        The score with its interval, the same at every call.

    Examples:
        Three prompts of one category and one of another weigh the same as categories:

        >>> score_of([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], "categories").mean
        0.5
        >>> score_of([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean
        0.75
    """
    numbers = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    count = int(finite.sum())
    if not count:
        return Score(math.nan, math.nan, math.nan, 0)
    if averaging == "categories":
        names = np.asarray(categories)
        samples = [numbers[finite & (names == name)] for name in sorted(set(categories))]
        samples = [sample for sample in samples if len(sample)]
    else:
        samples = [numbers[finite]]
    mean = float(_mean_of_means(*samples))
    low, high = _interval(samples) if count > 1 else (math.nan, math.nan)
    return Score(mean, low, high, count)


def difference_of(
    values: Sequence[float],
    reference: Sequence[float],
    categories: Sequence[str],
    averaging: Averaging = "prompts",
) -> Score:
    """The difference of two models on the same prompts, paired prompt by prompt.

    Args:
        values: As for `score_of`, of one model.
        reference: Of the other, in the same order.
        categories: The category of each prompt.
        averaging: How they become one number.

    Returns:
        The difference over the prompts that both have a score for.
    """
    apart = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return score_of(apart.tolist(), categories, averaging)


def _interval(samples: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    if all(np.ptp(sample) == 0 for sample in samples):
        return (float(_mean_of_means(*samples)),) * 2
    # One prompt of a category is always itself: scipy wants two.
    wide = [np.repeat(sample, 2) if len(sample) == 1 else sample for sample in samples]
    found = bootstrap(
        wide,
        _mean_of_means,
        n_resamples=RESAMPLES,
        batch=200,
        confidence_level=LEVEL,
        method="percentile",
        random_state=np.random.default_rng(0),
        vectorized=True,
    ).confidence_interval
    return float(found.low), float(found.high)


def _mean_of_means(*samples: npt.NDArray[np.float64], axis: int = -1) -> Any:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)
