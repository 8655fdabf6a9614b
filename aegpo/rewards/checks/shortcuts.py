"""How a reward could be hacked: what simple statistics of an image it rises or falls with.

Reinforcement learning compares the images of one prompt, so correlations are taken within prompts:
between them, brightness goes with what the prompts ask for. A correlation is no proof that a policy
will take that way, and none is no proof that there is no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from aegpo.rewards.base import Reward
from aegpo.rewards.checks.changes import describe_error, score_samples
from aegpo.rewards.checks.image_statistics import STATISTICS, image_statistics
from aegpo.rewards.checks.samples import RewardSamples
from aegpo.utilities.findings import Finding

STRONG, LEVEL = 0.3, 0.05
"""A correlation beyond the first whose corrected p is below the second is a warning."""
FEWEST_IMAGES, FEWEST_PROMPTS = 12, 5
"""Below so many comparable images nothing is said, below so many prompts no interval is."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WithinPrompts:
    """Rank correlations of scores with some statistics, between the images of the same prompt.

    Args:
        correlation: In [-1, 1], shape (S,); NaN where the statistic is the same within each prompt.
        low: Lower end of its 95 % interval, prompts drawn anew, shape (S,); NaN with few prompts.
        high: Upper end.
        p: Probability that the largest of all S would be as large by chance, shape (S,).
        images: Images that were compared.
        prompts: Prompts that they are of.
    """

    correlation: _Array
    low: _Array
    high: _Array
    p: _Array
    images: int
    prompts: int


def within_prompts(
    scores: _Array,
    statistics: _Array,
    prompts: npt.NDArray[Any],
    draws: int = 1999,
    seed: int = 0,
) -> WithinPrompts:
    """Correlate ranks within prompts.

    Spearman's coefficient with each prompt's ranks centered and scaled by their number. p-values
    come from shuffling the scores within prompts and comparing with the largest |coefficient| of
    each shuffle (Westfall and Young's max-T), which corrects for the number of statistics and
    knows how they hang together.

    Args:
        scores: Shape (N,), finite.
        statistics: Shape (N, S), finite.
        prompts: Which prompt each image is of, shape (N,).
        draws: Shuffles, and prompts drawn anew for the intervals.
        seed: Of both.

    Returns:
        The correlations.
    """
    rng = np.random.default_rng(seed)
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    group, given, measured = group[order], scores[order], statistics[order]
    score = _ranks(given[:, None], group)[:, 0]
    ranks = _ranks(measured, group)
    # A prompt whose scores, or whose values of a statistic, are all the same says nothing of it.
    heard = (_by_group(ranks**2, group) > 0) & (_by_group(score[:, None] ** 2, group) > 0)
    ranks = ranks * heard[group]
    parts = [
        _by_group(ranks * score[:, None], group),
        _by_group(ranks**2, group),
        _by_group(score[:, None] ** 2, group) * heard,
    ]
    found = _coefficient(*(part.sum(0) for part in parts))
    norm = np.sqrt(parts[1].sum(0) * parts[2].sum(0))
    shuffled = np.argsort(rng.random((draws, len(score))) + group, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_chance = np.nan_to_num(np.abs(score[shuffled] @ ranks / norm)).max(1)
    as_large = by_chance[:, None] >= np.abs(found) - 1e-12
    count = len(sizes)
    low = high = np.full(len(found), np.nan)
    if int(heard.any(1).sum()) >= FEWEST_PROMPTS:
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
        again = _coefficient(*(drawn @ part for part in parts))
        low, high = np.quantile(np.nan_to_num(again), (0.025, 0.975), axis=0)
    used = heard.any(1)
    return WithinPrompts(
        found,
        low,
        high,
        (1 + as_large.sum(0)) / (1 + draws),
        images=int(sizes[used].sum()),
        prompts=int(used.sum()),
    )


def check_shortcuts(
    reward: Reward, samples: RewardSamples, device: torch.device
) -> Iterator[Finding]:
    """Say which statistics of an image a reward rises or falls with, within prompts.

    Args:
        reward: The reward, set up.
        samples: Several images of each of several prompts.
        device: Where the images will be.

    Yields:
        One finding for each statistic, or one that says why there is none.
    """
    given = replace(samples, images=samples.images.to(device))
    try:
        scores = score_samples(reward, given)
    except Exception as error:  # a user's reward may raise anything
        yield Finding("shortcuts", "failed", f"it {describe_error(error)}")
        return
    good = scores.isfinite() & samples.images.isfinite().flatten(1).all(1)
    if int(good.sum()) < FEWEST_IMAGES:
        yield _too_few(int(good.sum()), "have a score")
        return
    texts = np.array(samples.prompts)[good.numpy()]
    images = samples.images[good]
    found = within_prompts(scores[good].double().numpy(), image_statistics(images).numpy(), texts)
    if found.images < FEWEST_IMAGES:
        yield _too_few(found.images, "are of prompts whose images score differently")
        return
    yield Finding(
        "shortcuts", "ok", f"ranks of {found.images} images within {found.prompts} prompts:"
    )
    for place, name in enumerate(STATISTICS):
        yield _told(name, found, place)


def _too_few(count: int, what: str) -> Finding:
    told = f"not looked for: {count} images {what}, fewer than {FEWEST_IMAGES}"
    return Finding("shortcuts", "ok", told)


def _told(name: str, found: WithinPrompts, place: int) -> Finding:
    """One statistic's finding."""
    r, p = found.correlation[place], found.p[place]
    if np.isnan(r):
        return Finding(name, "ok", "does not differ between the images of a prompt")
    told = f"rank correlation {r:+.2f}"
    if not np.isnan(found.low[place]):
        told += f" ({found.low[place]:+.2f} to {found.high[place]:+.2f})"
    told += f", p {p:.2g} among {len(found.p)}"
    if abs(r) < STRONG or p >= LEVEL:
        return Finding(name, "ok", told)
    way, become = ("rises", STATISTICS[name].more) if r > 0 else ("falls", STATISTICS[name].less)
    return Finding(
        name,
        "warning",
        f"this reward {way} with {name}: {told}; training may make images {become} whatever the "
        "prompt asks: watch samples, and another reward",
    )


def _ranks(values: _Array, group: npt.NDArray[np.intp]) -> _Array:
    """Ranks within each group, centered, in units of the group's size; shape (N, S)."""
    ranks = np.empty(values.shape, dtype=np.float64)
    for one in np.unique(group):
        rows = group == one
        own = rankdata(values[rows], axis=0)
        ranks[rows] = (own - own.mean(0)) / rows.sum()
    return ranks


def _by_group(values: _Array, group: npt.NDArray[np.intp]) -> _Array:
    """Sums over each group, shape (G, S)."""
    total = np.zeros((int(group[-1]) + 1 if len(group) else 0, values.shape[1]))
    np.add.at(total, group, values)
    return total


def _coefficient(together: _Array, one: _Array, other: _Array) -> _Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: _Array = together / np.sqrt(one * other)
    return found
