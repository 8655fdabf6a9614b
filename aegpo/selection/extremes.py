"""The extremes of a group: what tells most about what is good and what is bad."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from aegpo.noise import KeyedNoise
from aegpo.selection.selection import Selection

SAME = 1e-6
"""Relative difference of two variances that the rounding of fp32 advantages may make."""


class Extremes(Selection):
    """Trains on the best and the worst images of every group.

    Max-variance down-sampling (PODS, arXiv 2504.13818): of n rewards the k of largest variance are
    always some of the lowest and the rest of the highest. Equal advantages are told apart by the
    image's number. The mean gradient is not that of all images, and is not meant to be: it points
    the same way with less noise for what it costs.

    Rewards are rarely even about their mean. Near their upper end the worst images lie farther from
    it than the best, so the extremes' advantages add up to less than nothing (-.19 deviations an
    image on the bundled world): the policy is pushed away from its own images, good or bad, and
    what that does to it is in docs/results.md. So the chosen are compared with each other, as in
    PODS; `baseline="group"` leaves their advantages as they were.

    Args:
        keep: Images of a group that are trained on, at least 2; a smaller group is kept whole.
        split: How many of them are of the best: those that make the variance largest ("variance"),
            or half of them ("even"; of an odd number one more than half).
        skip_silent: Leave out groups without signal, whose advantages are all 0.
        baseline: What an advantage is counted from: the mean of the "chosen" images of a group, or
            that of the whole "group".

    Raises:
        ValueError: If `keep` is below 2, or `split` or `baseline` is unknown.

    Examples:
        The two best and the two worst of six; or, with more variance, the best and the three worst,
        because these lie together:

        >>> advantages = torch.tensor([0.5, -1.5, 2.0, -1.4, 0.1, -1.3]).double()
        >>> Extremes(keep=4, split="even").weigh(advantages, 0, KeyedNoise(0))
        tensor([1., 1., 1., 1., 0., 0.], dtype=torch.float64)
        >>> Extremes(keep=4).weigh(advantages, 0, KeyedNoise(0))
        tensor([0., 1., 1., 1., 0., 1.], dtype=torch.float64)

        The extremes of three images, whose advantages add up to -1, compared with each other:

        >>> extremes = Extremes(keep=2)
        >>> advantages, row = torch.tensor([1.0, -2.0, 1.0]), torch.zeros(3, dtype=torch.int64)
        >>> weights = extremes(advantages, row, torch.tensor([0]), KeyedNoise(0))
        >>> weights, extremes.trained_on(advantages, weights, row)
        (tensor([0., 1., 1.]), tensor([    nan, -1.5000,  1.5000]))
    """

    def __init__(
        self,
        keep: int = 8,
        split: Literal["variance", "even"] = "variance",
        skip_silent: bool = False,
        baseline: Literal["chosen", "group"] = "chosen",
    ) -> None:
        super().__init__(skip_silent)
        if keep < 2:
            raise ValueError(f"Extremes: keep={keep} must be at least 2, a best and a worst image")
        if split not in ("variance", "even"):
            raise ValueError(f"Extremes: split={split!r} is unknown; use 'variance' or 'even'")
        if baseline not in ("group", "chosen"):
            raise ValueError(f"Extremes: baseline={baseline!r} is unknown; use 'chosen' or 'group'")
        self.keep, self.split, self.baseline = keep, split, baseline

    def __repr__(self) -> str:
        return f"Extremes(keep={self.keep})"

    def weigh(self, advantages: Tensor, key: int, noise: KeyedNoise) -> Tensor:
        """1 for the chosen; see `Selection.weigh`."""
        if len(advantages) <= self.keep:
            return torch.ones_like(advantages)
        order = advantages.argsort(stable=True)
        best = (self.keep + 1) // 2
        if self.split == "variance":
            best = _most_spread(advantages[order].tolist(), self.keep)
        weights = torch.zeros_like(advantages)
        weights[order[: self.keep - best]] = 1.0
        weights[order[len(order) - best :]] = 1.0
        return weights

    def baseline_of(self, advantages: Tensor, weights: Tensor, row: Tensor) -> Tensor | float:
        """The mean of the chosen of each image's group, if they are to be compared so."""
        if self.baseline == "group":
            return super().baseline_of(advantages, weights, row)
        # In float64 on the CPU, where sums have one order.
        values, rows, chosen = advantages.double().cpu(), row.cpu(), weights.cpu() > 0
        count = torch.bincount(rows[chosen]).clamp(min=1)
        means = torch.bincount(rows[chosen], values[chosen]) / count
        beside = torch.zeros_like(values)
        beside[chosen] = means[rows[chosen]].to(values)
        return beside.to(advantages)


def _most_spread(ascending: list[float], keep: int) -> int:
    """How many of `keep` values should be of the highest for the largest variance.

    Where that does not matter they are as near to half as they can be.
    """
    lowest, highest = _running_sums(ascending), _running_sums(ascending[::-1])

    def variance(best: int) -> float:
        low, high = lowest[keep - best], highest[best]
        return (low[1] + high[1]) / keep - ((low[0] + high[0]) / keep) ** 2

    # From half outwards, so that the first of equals is the most even one.
    numbers = sorted(range(keep + 1), key=lambda best: (abs(2 * best - keep), -best))
    chosen = numbers[0]
    for best in numbers[1:]:
        if variance(best) > variance(chosen) * (1 + SAME):
            chosen = best
    return chosen


def _running_sums(values: list[float]) -> list[tuple[float, float]]:
    """The sums and the sums of squares of the first 0, 1, 2, ... values."""
    sums = accumulate(values, initial=0.0)
    squares = accumulate((value**2 for value in values), initial=0.0)
    return list(zip(sums, squares, strict=True))
