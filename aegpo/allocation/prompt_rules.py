"""What a prompt's earlier visits say about the next one: rivals of ΔEntropy that cost nothing.

A rule gives every prompt a number of at least 0. Draws in proportion to it, or budgets, are made
from it by who uses ΔEntropy otherwise: the prompt sampler and the allocators.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Visits:
    """What is known of a prompt from its groups of images.

    Args:
        count: Visits with at least two scores.
        silent: How many of the latest ones in a row had no spread; a mean need not be whole.
        variance: Running mean of the rewards' unbiased variance inside the group.
    """

    count: int = 0
    silent: float = 0
    variance: float = 0.0

    @classmethod
    def mean(cls, several: Sequence[Visits]) -> Visits:
        """What is known of a prompt like these, each counting alike.

        Args:
            several: Records of prompts that were visited, one at least.

        Returns:
            The record that they have in the mean; its `count` is that of all of them.
        """
        return cls(
            sum(one.count for one in several),
            sum(one.silent for one in several) / len(several),
            sum(one.variance for one in several) / len(several),
        )

    def leaning_on(self, others: Visits, visits: float) -> Visits:
        """Shrink towards what prompts of its kind are like, the more the fewer visits it had.

        Args:
            others: What is known of those.
            visits: How many visits of its own they weigh as much as, above 0.

        Returns:
            The record in between; `others` itself for a prompt without a visit.
        """
        own = self.count / (self.count + visits)
        return Visits(
            self.count,
            own * self.silent + (1 - own) * others.silent,
            own * self.variance + (1 - own) * others.variance,
        )

    def after(self, variance: float, decay: float) -> Visits:
        """What is known after one more visit.

        Args:
            variance: Variance of its rewards, NaN where there were not two of them.
            decay: Share of the past in the running mean, which starts as a plain mean.

        Returns:
            The new record.
        """
        if not math.isfinite(variance):
            return self
        kept = min(decay, self.count / (self.count + 1))
        return Visits(
            self.count + 1,
            self.silent + 1 if variance == 0 else 0,
            kept * self.variance + (1 - kept) * variance,
        )


class PromptRule(abc.ABC):
    """Says what a prompt is worth by its visits."""

    @abc.abstractmethod
    def __call__(self, visits: Visits) -> float:
        """Rate a prompt.

        Args:
            visits: Its visits, one at least.

        Returns:
            A number of at least 0, comparable between prompts.
        """


class SkipSilent(PromptRule):
    """The longer a prompt had no spread, the more often it is skipped, as in GRESO.

    GRESO (arXiv 2506.02177) draws prompts alike and skips one with the chance 1 - p^z, where z is
    the number of its latest visits in a row without spread. Drawing in proportion to p^z comes to
    the same. The floor keeps a prompt in reach: the policy that could not do it changes.

    Args:
        explore: p, the chance that a prompt is taken after one silent visit, above 0 and at most 1.
        floor: Least chance, above 0 and at most `explore`.

    Raises:
        ValueError: If one is out of range.

    Examples:
        >>> [SkipSilent(explore=0.5, floor=0.1)(Visits(9, silent)) for silent in (0, 1, 2, 3, 4)]
        [1.0, 0.5, 0.25, 0.125, 0.1]
    """

    def __init__(self, explore: float = 0.5, floor: float = 0.1) -> None:
        if not 0 < floor <= explore <= 1:
            raise ValueError(
                f"SkipSilent: explore={explore} must be above 0 and at most 1, and floor={floor} "
                "above 0 and at most explore"
            )
        self.explore, self.floor = explore, floor

    def __call__(self, visits: Visits) -> float:
        """p^z, not below the floor; see `PromptRule.__call__`."""
        return max(float(self.explore**visits.silent), self.floor)


class RunningSpread(PromptRule):
    """The running deviation of a prompt's rewards, as Neyman's allocation has it.

    With n_i images for a prompt of deviation s_i, the variance of a mean over prompts is least for
    n_i in proportion to s_i (VIP, arXiv 2602.01601, allocates by predicted variance likewise).
    """

    def __call__(self, visits: Visits) -> float:
        """The deviation; see `PromptRule.__call__`."""
        return math.sqrt(visits.variance)
