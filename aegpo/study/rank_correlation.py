"""Rank correlations: overall, and inside categories."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of two rows of numbers.

    Args:
        x: Shape (n,); NaN marks a missing value.
        y: Shape (n,), likewise.

    Returns:
        In [-1, 1]; NaN with fewer than three complete pairs, or where one side is constant.

    Raises:
        ValueError: If the shapes differ.
    """
    if x.shape != y.shape or x.dim() != 1:
        raise ValueError(
            f"spearman needs two rows of equal length, got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    complete = x.isfinite() & y.isfinite()
    x, y = x[complete].double().cpu(), y[complete].double().cpu()
    if len(x) < 3 or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan
    return float(stats.spearmanr(x.numpy(), y.numpy()).statistic)


def spearman_within(x: Tensor, y: Tensor, categories: Sequence[str]) -> float:
    """Spearman's rank correlation inside categories: each category's means are taken away first.

    A category with fewer than two complete pairs says nothing and is left out.

    Args:
        x: Shape (n,); NaN marks a missing value.
        y: Shape (n,), likewise.
        categories: n names.

    Returns:
        In [-1, 1]; NaN where `spearman` is.

    Raises:
        ValueError: If there is not one category per value.
    """
    if len(categories) != len(x):
        raise ValueError(f"{len(x)} values need as many categories, got {len(categories)}")
    complete = x.isfinite() & y.isfinite()
    left, right = [], []
    for name in sorted(set(categories)):
        members = complete & torch.tensor([category == name for category in categories])
        if int(members.sum()) >= 2:
            left.append(_centered(x[members]))
            right.append(_centered(y[members]))
    if not left:
        return math.nan
    return spearman(torch.cat(left), torch.cat(right))


def _centered(values: Tensor) -> Tensor:
    """Values less their mean; equal ones become exactly 0, not rounding that has ranks."""
    centered = values.double() - values.double().mean()
    return torch.zeros_like(centered) if bool((values == values[0]).all()) else centered


def chance_level(n: int) -> float:
    """The |rank correlation| that unrelated values exceed about once in twenty times.

    Args:
        n: Independent pairs.

    Returns:
        1.96 / sqrt(n - 1), the normal approximation; 1 where that exceeds 1.
    """
    return min(1.0, 1.96 / math.sqrt(n - 1)) if n > 1 else 1.0
