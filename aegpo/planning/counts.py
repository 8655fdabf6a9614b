"""What is said about a run before it starts: ranges of counts, and what a callback will add.

`aegpo plan` draws iterations without a model to count what the module spends; callbacks say for
themselves what they spend, by `PlansEvaluations`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A number known up to bounds; both are equal where it is known exactly.

    Args:
        low: Smallest value.
        high: Largest value.

    Examples:
        What is known exactly adds to both bounds, and a sum is as wide as its parts together:

        >>> Range.over([12, 8, 16]) + Range.exactly(40)
        Range(low=48, high=56)
        >>> Range(8, 16) + Range(1, 3)
        Range(low=9, high=19)
        >>> Range(8, 16) * 10
        Range(low=80, high=160)
    """

    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        """A number that is known.

        Args:
            value: The number.

        Returns:
            Both bounds at it.
        """
        return cls(value, value)

    @classmethod
    def over(cls, values: Iterable[float]) -> Range:
        """The smallest range that holds some numbers.

        Args:
            values: One number at least.

        Returns:
            From the smallest to the largest.
        """
        known = list(values)
        return cls(min(known), max(known))

    def __add__(self, other: Range) -> Range:
        """Bounds of a sum."""
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        """Bounds of a multiple by a factor of at least 0."""
        return Range(self.low * factor, self.high * factor)


def limited_batches(batches: int, limit: float | None) -> int:
    """What Lightning's `limit_*_batches` leaves of a number of batches.

    Args:
        batches: Batches there are.
        limit: A whole number of batches, or a share of them in [0, 1]; None for all.

    Returns:
        Batches that are run.
    """
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


@dataclass(frozen=True)
class RunShape:
    """As much of a run as a callback needs to say what it will cost.

    Args:
        iterations: Training iterations.
        batch_size: Prompts of an iteration, over all ranks.
        num_steps: Denoising steps T.
        num_prompts: Training prompts there are; None if unknown.
    """

    iterations: int
    batch_size: int
    num_steps: int
    num_prompts: int | None


class PlansEvaluations:
    """Mixed into a callback that spends model evaluations, or decides how many are spent.

    Everything has the answer of a callback that does neither; override what differs. Evaluations
    are counted in samples through the denoiser, without the doubling by guidance.

    Attributes:
        publishes: What it puts into `pl_module.entropy`: "curve" and "delta", each or none.
        evaluation_budget: Model evaluations after which it ends the run; None for never.
        evaluations_per_validation: Model evaluations between two validations, in the place of
            Lightning's own rhythm; None to leave that alone.
    """

    publishes: tuple[str, ...] = ()
    evaluation_budget: int | None = None
    evaluations_per_validation: int | None = None

    def planned_evaluations(self, run: RunShape) -> dict[str, Range]:
        """Say what the callback itself will spend.

        Args:
            run: The run, from its start.

        Returns:
            Samples through the denoiser in the whole run, by purpose as in `aegpo.evaluations`.
        """
        del run
        return {}

    def scored_rows(self, num_queries: int) -> int:
        """Say how many rows of attention scores it computes at each head, for their memory.

        Args:
            num_queries: Tokens that attend.

        Returns:
            Query rows, 0 for a callback that scores none.
        """
        del num_queries
        return 0
