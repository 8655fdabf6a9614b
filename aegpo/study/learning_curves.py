"""Learning curves of runs and methods: held-out score against model evaluations spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        missing: Scores that were measured and are no number, between those that are here.

    Raises:
        ValueError: If there is no point, the shapes differ, the cost does not rise or a value is
            not finite.
    """

    cost: Array
    score: Array
    missing: int = 0

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

        A score that is not finite, because its images could not be scored, is left out and
        counted; the curve goes straight over it.

        Args:
            score: Score by iteration.
            cost: Evaluations spent by iteration; a score is paired with the last one up to its
                iteration, and with 0 before the first.

        Returns:
            The curve, one point for each score that had its own cost.
        """
        spent = sorted(cost)
        points: dict[float, float] = {}
        finite = [iteration for iteration in sorted(score) if np.isfinite(score[iteration])]
        for iteration in finite:
            before = np.searchsorted(spent, iteration, side="right")
            points[cost[spent[before - 1]] if before else 0.0] = score[iteration]
        costs, scores = np.array(list(points), float), np.array(list(points.values()), float)
        return cls(costs, scores, missing=len(score) - len(finite))

    def at(self, cost: npt.ArrayLike) -> Array:
        """Interpolate the score linearly between the measurements.

        Args:
            cost: Where, in evaluations, of any shape.

        Returns:
            Scores of the same shape; NaN before the first and after the last measurement.
        """
        where = np.asarray(cost, dtype=np.float64)
        return np.asarray(np.interp(where, self.cost, self.score, left=np.nan, right=np.nan))

    def mean_to(self, budget: float) -> float:
        """Average the score over the evaluations spent, the area under the curve.

        A score measured once is noisy; this says how far a run was ahead all along.

        Args:
            budget: Evaluations up to which the curve counts, above those of the first measurement.

        Returns:
            Mean of the interpolated curve from its first measurement to `budget`; NaN if the last
            one came before that.
        """
        inside = self.cost < budget
        cost = np.append(self.cost[inside], budget)
        score = np.append(self.score[inside], self.at(budget))
        return float(np.trapezoid(score, cost) / (budget - self.cost[0]))

    def evaluations_to(self, target: float, budget: float, lasting: bool = False) -> float:
        """Find when the interpolated curve reaches a score.

        Args:
            target: The score.
            budget: Evaluations up to which the curve counts.
            lasting: Whether it must stay there: no score measured later, up to `budget`, lies
                below the target. Otherwise the first passage counts.

        Returns:
            Evaluations, at most `budget`; infinity if the score is not reached within it.
        """
        reached = self.score >= target
        if lasting:
            if self.at(budget) < target:  # it falls below between the last two measurements
                return np.inf
            below = np.flatnonzero(~reached & (self.cost <= budget))
            reached[: below[-1] + 1 if len(below) else 0] = False
        points = np.flatnonzero(reached)
        if not len(points):
            return np.inf
        point = int(points[0])
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
