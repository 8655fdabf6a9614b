"""Comparing methods at equal compute: learning curves over model evaluations, and their statistics.

Nothing here knows where the curves come from. A run is a `Curve`, a method a dictionary from seed
to curve, and every statistic is taken at a budget of model evaluations that is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Runs = Mapping[int, "Curve"]
"""The runs of one method, by seed."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Held-out score of one run against what it had spent.

    Args:
        cost: Model evaluations spent, rising, shape (P,).
        score: Score measured then, shape (P,).

    Raises:
        ValueError: If there is no point, the shapes differ, the cost does not rise or a value is
            not finite.
    """

    cost: Array
    score: Array

    def __post_init__(self) -> None:
        if self.cost.ndim != 1 or self.cost.shape != self.score.shape or not len(self.cost):
            raise ValueError(
                "a curve needs one score for each cost and at least one point, but has shapes "
                f"{self.cost.shape} and {self.score.shape}"
            )
        if not (np.isfinite(self.cost).all() and np.isfinite(self.score).all()):
            raise ValueError("a curve holds a cost or a score that is not finite")
        if bool((np.diff(self.cost) <= 0).any()):
            raise ValueError("the costs of a curve must rise from point to point")

    @classmethod
    def from_logs(cls, score: Mapping[int, float], cost: Mapping[int, float]) -> Curve:
        """Join what was logged at the same iterations.

        Args:
            score: Score by iteration.
            cost: Evaluations spent by iteration; a score is paired with the last one up to its
                iteration, and with 0 before the first.

        Returns:
            The curve, one point for each score that had its own cost.
        """
        spent = sorted(cost)
        points: dict[float, float] = {}
        for iteration in sorted(score):
            before = np.searchsorted(spent, iteration, side="right")
            points[cost[spent[before - 1]] if before else 0.0] = score[iteration]
        return cls(np.array(list(points), float), np.array(list(points.values()), float))

    def at(self, cost: npt.ArrayLike) -> Array:
        """Interpolate the score linearly between the measurements.

        Args:
            cost: Where, in evaluations, of any shape.

        Returns:
            Scores of the same shape; NaN before the first and after the last measurement.
        """
        return np.interp(cost, self.cost, self.score, left=np.nan, right=np.nan)

    def evaluations_to(self, target: float, budget: float) -> float:
        """Find when the interpolated curve reaches a score for the first time.

        Args:
            target: The score.
            budget: Evaluations up to which the curve counts.

        Returns:
            Evaluations, at most `budget`; infinity if the score is not reached within it.
        """
        reached = np.flatnonzero(self.score >= target)
        if not len(reached):
            return np.inf
        point = int(reached[0])
        if point == 0:
            cost = float(self.cost[0])
        else:
            (x0, x1), (y0, y1) = self.cost[point - 1 : point + 1], self.score[point - 1 : point + 1]
            cost = float(x0 + (target - y0) / (y1 - y0) * (x1 - x0))
        return cost if cost <= budget else np.inf


def band(runs: Runs, grid: Array, quartiles: bool = False) -> tuple[Array, Array, Array]:
    """Median curve over seeds and the band around it, on a common grid of costs.

    Args:
        runs: The runs of one method.
        grid: Costs in evaluations, shape (G,).
        quartiles: Whether the band is the middle half of the seeds instead of all of them.

    Returns:
        Median, lower and upper edge, each of shape (G,); NaN where a seed has no measurement.
    """
    scores = np.stack([curve.at(grid) for curve in runs.values()])
    low, high = (25, 75) if quartiles else (0, 100)
    return np.median(scores, 0), np.percentile(scores, low, 0), np.percentile(scores, high, 0)


@dataclass(frozen=True)
class Estimate:
    """A statistic over seeds with its bootstrap interval; infinity is "more than was measured".

    Args:
        value: The statistic of all seeds; NaN if it is not defined.
        low: Lower end of the interval.
        high: Upper end.
        paired: Whether methods were compared seed by seed.
    """

    value: float
    low: float
    high: float
    paired: bool


def bootstrap(
    statistic: Callable[[Sequence[int], Sequence[int]], float],
    seeds: Sequence[int],
    reference_seeds: Sequence[int],
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap over seeds of a statistic of two methods.

    Where both methods were run with the same seeds these are drawn together, as pairs; otherwise
    each method's seeds are drawn for themselves.

    Args:
        statistic: Value for some seeds of the method and some of the reference, with repetitions;
            NaN where it is not defined (such resamples are left out).
        seeds: Seeds of the method.
        reference_seeds: Seeds of the reference.
        resamples: How many times the seeds are drawn.
        level: Share of the resamples inside the interval.

    Returns:
        The statistic of all seeds and its interval. The ends are values of resamples, never
        averages of two, so that infinity stays apart from what was measured.
    """
    paired = sorted(seeds) == sorted(reference_seeds)
    order, reference_order = sorted(seeds), sorted(reference_seeds)
    generator = np.random.Generator(np.random.Philox(key=0))  # the same interval every time
    values = []
    for _ in range(resamples):
        own = [order[i] for i in generator.integers(len(order), size=len(order))]
        other = own
        if not paired:
            size = len(reference_order)
            other = [reference_order[i] for i in generator.integers(size, size=size)]
        values.append(statistic(own, other))
    drawn = np.array(values)
    drawn = drawn[~np.isnan(drawn)]
    tail = 100 * (1 - level) / 2
    low = high = np.nan
    if len(drawn):
        low, high = np.percentile(drawn, [tail, 100 - tail], method="inverted_cdf")
    return Estimate(statistic(order, reference_order), float(low), float(high), paired)


@dataclass(frozen=True)
class Target:
    """The score whose price is compared: a number, or what the reference ends with.

    Args:
        budget: Evaluations of every run.
        score: The score; None for the reference's median score at the budget, which every
            bootstrap resample then computes anew, so that intervals cover its uncertainty.
    """

    budget: float
    score: float | None = None

    def of(self, reference: Runs, seeds: Sequence[int]) -> float:
        """The score to reach, with these of the reference's seeds."""
        if self.score is not None:
            return self.score
        return float(np.median([reference[seed].at(self.budget) for seed in seeds]))


def evaluations_ratio(runs: Runs, reference: Runs, target: Target) -> Estimate:
    """Compare what two methods spend until they reach the same score.

    A run that does not reach it within the budget is censored: more than the budget is all that is
    known. Both kinds of censoring are resolved against the method: its own run counts as infinite,
    the reference's as exactly the budget, so a ratio is an upper bound.

    Args:
        runs: The method's runs.
        reference: The reference's runs.
        target: The score.

    Returns:
        Median over seeds of the ratio of evaluations where the seeds are the same, otherwise the
        ratio of the medians; infinity where half of the method's runs do not reach the score, NaN
        where the reference has it before any training.
    """
    paired = sorted(runs) == sorted(reference)

    def statistic(seeds: Sequence[int], reference_seeds: Sequence[int]) -> float:
        score = target.of(reference, reference_seeds)
        own = np.array([runs[seed].evaluations_to(score, target.budget) for seed in seeds])
        other = np.array(
            [
                min(reference[seed].evaluations_to(score, target.budget), target.budget)
                for seed in reference_seeds
            ]
        )
        if bool((other == 0).any()):
            return np.nan
        return float(np.median(own / other) if paired else np.median(own) / np.median(other))

    return bootstrap(statistic, list(runs), list(reference))


def score_difference(runs: Runs, reference: Runs, budget: float) -> Estimate:
    """Compare the scores that two methods have at the budget.

    Args:
        runs: The method's runs.
        reference: The reference's runs.
        budget: Evaluations.

    Returns:
        Median over seeds of score minus the reference's with the same seed, otherwise the
        difference of the medians.
    """
    paired = sorted(runs) == sorted(reference)

    def statistic(seeds: Sequence[int], reference_seeds: Sequence[int]) -> float:
        own = np.array([runs[seed].at(budget) for seed in seeds])
        other = np.array([reference[seed].at(budget) for seed in reference_seeds])
        return float(np.median(own - other) if paired else np.median(own) - np.median(other))

    return bootstrap(statistic, list(runs), list(reference))


def summarize(
    methods: Mapping[str, Runs], reference: str, target: Target
) -> tuple[float, list[dict[str, Any]]]:
    """Compute the rows of the table, one for each method.

    Args:
        methods: Runs of each method that has any.
        reference: The method that the others are compared with; one of `methods`.
        target: The score whose price is compared.

    Returns:
        The score to reach, and for each method its seeds, its final scores, its evaluations to
        the target (infinity where it is not reached) and, against the reference, the estimates
        `ratio` and `difference`.
    """
    base = methods[reference]
    score = target.of(base, list(base))
    rows = []
    for name, runs in methods.items():
        final = np.array([runs[seed].at(target.budget) for seed in sorted(runs)])
        spent = [runs[seed].evaluations_to(score, target.budget) for seed in sorted(runs)]
        rows.append(
            {
                "method": name,
                "seeds": sorted(runs),
                "final": [float(value) for value in final],
                "final_median": float(np.median(final)),
                "evaluations_to_target": spent,
                "evaluations_to_target_median": float(np.median(spent)),
                "reached": int(np.isfinite(spent).sum()),
                "ratio": None if name == reference else evaluations_ratio(runs, base, target),
                "difference": (
                    None if name == reference else score_difference(runs, base, target.budget)
                ),
            }
        )
    return score, rows
