"""Comparing methods at equal compute: learning curves over model evaluations, and their statistics.

Nothing here knows where the curves come from. A run is a `Curve`, a method a dictionary from seed
to curve, and every statistic is taken at a budget of model evaluations that is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from aegpo.study.learning_curves import Curve, Runs


@dataclass(frozen=True)
class Estimate:
    """A statistic over seeds and how far it may be off; infinity is "more than was measured".

    Args:
        value: The statistic of all seeds; NaN if it is not defined.
        low: Lower end of the interval, or the lowest seed.
        high: Upper end, or the highest seed.
        paired: Whether methods were compared seed by seed.
        is_range: Whether the ends are those of the seeds and not of a 95 % interval.
    """

    value: float
    low: float
    high: float
    paired: bool
    is_range: bool = False


FEWEST = 5
"""Seeds of each method below which there is no 95 % interval: it would be the range of the seeds,
which holds the true median with probability 1 - 2^(1 - n): 50, 75 and 88 % for 2, 3 and 4."""


def estimate(
    statistic: Callable[[Sequence[int], Sequence[int]], float],
    seeds: Sequence[int],
    reference_seeds: Sequence[int],
    of_pair: Callable[[int, int], float] | None = None,
) -> Estimate:
    """A statistic of two methods, with what their number of seeds can say of its error.

    Args:
        statistic: As for `bootstrap`.
        seeds: Seeds of the method.
        reference_seeds: Seeds of the reference.
        of_pair: The number of one seed of the method and one of the reference, whose range is
            given; None for the statistic of these two alone.

    Returns:
        With `FEWEST` seeds or more of each method the 95 % interval of `bootstrap`, which then
        holds the true median 93 to 97 times in a hundred. Otherwise the range over the seeds, or
        over all pairs of a seed of each where the seeds differ; NaN with a single seed.
    """
    own, other = sorted(seeds), sorted(reference_seeds)
    if min(len(own), len(other)) >= FEWEST:
        return bootstrap(statistic, own, other)
    paired = own == other
    pairs = list(zip(own, other, strict=True)) if paired else list(product(own, other))
    of_pair = of_pair or (lambda seed, reference: statistic([seed], [reference]))
    values = np.array([of_pair(seed, reference) for seed, reference in pairs])
    values = values[~np.isnan(values)]
    low = high = np.nan
    if len(values) and len(pairs) > 1:
        low, high = values.min(), values.max()
    return Estimate(statistic(own, other), float(low), float(high), paired, is_range=True)


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
        The statistic of all seeds and its interval, NaN with a single seed. The ends are values of
        resamples, never averages of two, so that infinity stays apart from what was measured.
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
    if len(drawn) and max(len(order), len(reference_order)) > 1:
        low, high = np.percentile(drawn, [tail, 100 - tail], method="inverted_cdf")
    return Estimate(statistic(order, reference_order), float(low), float(high), paired)


@dataclass(frozen=True)
class Target:
    """The score whose price is compared: a number, or what the reference ends with.

    Args:
        budget: Evaluations of every run, where final scores are compared.
        score: The score; None for the reference's median score at the end of its own budget, which
            every bootstrap resample then computes anew, so that intervals cover its uncertainty.
        reference_budget: Evaluations of the reference's runs; None for `budget`.
        lasting: Whether a run must stay at the score once it has it, up to its budget.
    """

    budget: float
    score: float | None = None
    reference_budget: float | None = None
    lasting: bool = False

    @property
    def end(self) -> float:
        """Evaluations of the reference's runs."""
        return self.budget if self.reference_budget is None else self.reference_budget

    def of(self, reference: Runs, seeds: Sequence[int]) -> float:
        """The score to reach, with these of the reference's seeds."""
        if self.score is not None:
            return self.score
        return float(np.median([reference[seed].at(self.end) for seed in seeds]))


def evaluations_ratio(
    runs: Runs, reference: Runs, target: Target, budget: float | None = None
) -> Estimate:
    """Compare what two methods spend until they reach the same score.

    A run that does not reach it within its budget is censored: more than the budget is all that is
    known. Both kinds of censoring are resolved against the method: its own run counts as infinite,
    the reference's as exactly its budget, so a ratio is an upper bound.

    Args:
        runs: The method's runs.
        reference: The reference's runs.
        target: The score.
        budget: Evaluations of the method's runs; None for those of all.

    Returns:
        Median over seeds of the ratio of evaluations where the seeds are the same, otherwise the
        ratio of the medians; infinity where half of the method's runs do not reach the score, NaN
        where the reference has it before any training.
    """
    paired = sorted(runs) == sorted(reference)
    limit = target.budget if budget is None else budget

    def at(score: float, seeds: Sequence[int], reference_seeds: Sequence[int]) -> float:
        own = np.array([runs[seed].evaluations_to(score, limit, target.lasting) for seed in seeds])
        other = np.array(
            [
                min(reference[seed].evaluations_to(score, target.end, target.lasting), target.end)
                for seed in reference_seeds
            ]
        )
        if bool((other == 0).any()):
            return np.nan
        return float(np.median(own / other) if paired else np.median(own) / np.median(other))

    def statistic(seeds: Sequence[int], reference_seeds: Sequence[int]) -> float:
        return at(target.of(reference, reference_seeds), seeds, reference_seeds)

    common = target.of(reference, list(reference))  # a range is that of what all seeds are set to
    return estimate(
        statistic, list(runs), list(reference), lambda seed, other: at(common, [seed], [other])
    )


def difference(runs: Runs, reference: Runs, statistic_of: Callable[[Curve], float]) -> Estimate:
    """Compare a number that every curve has.

    Args:
        runs: The method's runs.
        reference: The reference's runs.
        statistic_of: The number, such as the score at the budget.

    Returns:
        Median over seeds of the method's number minus the reference's with the same seed,
        otherwise the difference of the medians.
    """
    paired = sorted(runs) == sorted(reference)

    def statistic(seeds: Sequence[int], reference_seeds: Sequence[int]) -> float:
        own = np.array([statistic_of(runs[seed]) for seed in seeds])
        other = np.array([statistic_of(reference[seed]) for seed in reference_seeds])
        return float(np.median(own - other) if paired else np.median(own) - np.median(other))

    return estimate(statistic, list(runs), list(reference))


def summarize(
    methods: Mapping[str, Runs],
    reference: str,
    target: Target,
    budgets: Mapping[str, float] | None = None,
) -> tuple[float, list[dict[str, Any]]]:
    """Compute the rows of the table, one for each method.

    Args:
        methods: Runs of each method that has any.
        reference: The method that the others are compared with; one of `methods`.
        target: The score whose price is compared.
        budgets: Evaluations of single methods' runs where they are more than those of all.

    Returns:
        The score to reach, and for each method its seeds, its own budget, its scores at the common
        budget, the median of its mean scores up to it, its evaluations to the target (infinity
        where it is not reached within its own budget) and, against the reference, the estimates
        `ratio`, `difference` and `mean_difference`.
    """
    base = methods[reference]

    def final_score(curve: Curve) -> float:
        return float(curve.at(target.budget))

    def mean_score(curve: Curve) -> float:
        return curve.mean_to(target.budget)

    own = {name: (budgets or {}).get(name, target.budget) for name in methods}
    score = target.of(base, list(base))
    rows = []
    for name, runs in methods.items():
        final = [float(runs[seed].at(target.budget)) for seed in sorted(runs)]
        spent = [
            runs[seed].evaluations_to(score, own[name], target.lasting) for seed in sorted(runs)
        ]
        rows.append(
            {
                "method": name,
                "seeds": sorted(runs),
                "budget": own[name],
                "final": final,
                "final_median": float(np.median(final)),
                "mean_median": float(
                    np.median([curve.mean_to(target.budget) for curve in runs.values()])
                ),
                "evaluations_to_target": spent,
                "evaluations_to_target_median": float(np.median(spent)),
                "reached": int(np.isfinite(spent).sum()),
                "ratio": (
                    None if name == reference else evaluations_ratio(runs, base, target, own[name])
                ),
                "difference": None if name == reference else difference(runs, base, final_score),
                "mean_difference": (
                    None if name == reference else difference(runs, base, mean_score)
                ),
            }
        )
    return score, rows
