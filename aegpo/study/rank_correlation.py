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
    left, right, _ = _inside(x, y, categories)
    return spearman(left, right)


def chance_level_within(
    x: Tensor, y: Tensor, categories: Sequence[str], permutations: int = 2000
) -> float:
    """The |`spearman_within`| that these values exceed by chance once in twenty times.

    Taking the means of categories away leaves fewer than n independent pairs, so the level lies
    above `chance_level`. Here y is permuted inside each category, which is what "unrelated within
    categories" means.

    Args:
        x: Shape (n,); NaN marks a missing value.
        y: Shape (n,), likewise.
        categories: n names.
        permutations: How many are tried; always the same ones.

    Returns:
        In [0, 1]; NaN where `spearman_within` is.

    Raises:
        ValueError: If there is not one category per value.
    """
    left, right, sizes = _inside(x, y, categories)
    if math.isnan(spearman(left, right)):
        return math.nan
    # A permutation inside a category keeps its mean, and with it everybody's rank.
    first, second = (_standardized_ranks(values) for values in (left, right))
    generator = torch.Generator(device="cpu").manual_seed(0)
    lots = torch.rand(
        permutations, len(second), generator=generator, dtype=torch.float64, device="cpu"
    )
    number = torch.repeat_interleave(
        torch.arange(len(sizes), device="cpu"), torch.tensor(sizes, device="cpu")
    )
    order = (lots + number).argsort(dim=1)  # categories lie side by side and stay where they are
    correlations = (second[order] @ first).abs()
    return float(correlations.quantile(0.95, interpolation="higher"))


def _inside(x: Tensor, y: Tensor, categories: Sequence[str]) -> tuple[Tensor, Tensor, list[int]]:
    """Complete pairs less their category's means, category by category, and how many each has."""
    if len(categories) != len(x):
        raise ValueError(f"{len(x)} values need as many categories, got {len(categories)}")
    complete = x.isfinite() & y.isfinite()
    left, right = [x.new_zeros(0).double()], [y.new_zeros(0).double()]
    sizes = []
    for name in sorted(set(categories)):
        members = complete & torch.tensor(
            [category == name for category in categories], device="cpu"
        )
        if int(members.sum()) >= 2:
            left.append(_centered(x[members]))
            right.append(_centered(y[members]))
            sizes.append(int(members.sum()))
    return torch.cat(left), torch.cat(right), sizes


def _standardized_ranks(values: Tensor) -> Tensor:
    """Ranks with mean 0 and length 1, so that a product of two is their correlation."""
    ranks: Tensor = torch.from_numpy(stats.rankdata(values.cpu().numpy()))
    return torch.nn.functional.normalize(ranks - ranks.mean(), dim=0)


def _centered(values: Tensor) -> Tensor:
    """Values less their mean; equal ones become exactly 0, not rounding that has ranks."""
    centered = values.double() - values.double().mean()
    return torch.zeros_like(centered) if bool((values == values[0]).all()) else centered


def chance_level(n: int) -> float:
    """The |rank correlation| that unrelated values exceed about once in twenty times.

    Args:
        n: Independent pairs. Neighbors on a smooth curve are not, nor are values of which the means
            of categories were taken away (`chance_level_within`).

    Returns:
        1.96 / sqrt(n - 1), the normal approximation; 1 where that exceeds 1.
    """
    return min(1.0, 1.96 / math.sqrt(n - 1)) if n > 1 else 1.0
