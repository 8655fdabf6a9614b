"""How much of the reward's variance each denoising step's noise explains, as a running estimate.

This is what attention entropy stands in for when it chooses steps: put in the place of Entropy(t)
it makes the selector an oracle. It is measured by single-step trials (`trial_variance`) or read off
the siblings of trees (`aegpo.study.split_variance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegpo.study.step_trials import group_spread

_LEAD = 0.01  # how far above the highest estimate the steps lie that are to be measured next


@dataclass(frozen=True)
class VarianceTerms:
    """Unbiased variances, each weighted by the degrees of freedom that it was taken from.

    Attributes:
        squares: Sum over what was measured of freedom times variance; 0 where nothing was. An
            estimate from which other noise was subtracted may be negative. float64, shape (B, T).
        freedom: Sum of the degrees of freedom, float64, shape (B, T).
    """

    squares: Tensor
    freedom: Tensor


def trial_variance(rewards: Sequence[Tensor]) -> VarianceTerms:
    """The variance inside the groups of single-step trials.

    Given the starting noise, nothing but the step's noise differs inside a group, so the variance
    with n - 1 estimates what that noise explains while all other steps are deterministic.

    Args:
        rewards: For each of the first T - 1 steps the rewards of its groups, NaN where one is
            missing, shape (B, G).

    Returns:
        The terms of B prompts and T steps; none for the last step, which never explores.
    """
    freedom = torch.stack([r.isfinite().sum(dim=1) - 1 for r in rewards], dim=1).clamp(min=0)
    variance = torch.stack([group_spread(group).square() for group in rewards], dim=1)
    terms = freedom.double(), torch.where(freedom > 0, variance, 0.0) * freedom
    last = torch.zeros(len(freedom), 1, dtype=torch.float64, device="cpu")
    freedom, squares = (torch.cat([term, last], dim=1) for term in terms)
    return VarianceTerms(squares, freedom)


class StepVariance:
    """A mean of the variance that each step explains, in which old measurements fade.

    Every measurement counts by its degrees of freedom, times `decay` for each later one. A step
    that a measurement left out keeps its estimate, and the next look at it counts the more.

    Args:
        num_steps: Denoising steps T; the last one never explores and explains nothing.
        decay: Weight of a measurement after the next one, in [0, 1).
        revisit_every: Iterations after which a step that was not measured has to be measured
            again; None for never. Without it a step whose estimate came out too low by chance
            would never be split, and so never be corrected.

    Raises:
        ValueError: If `decay` lies outside [0, 1) or a number is too small.
    """

    def __init__(self, num_steps: int, decay: float, revisit_every: int | None = None) -> None:
        if num_steps < 2:
            raise ValueError(f"num_steps={num_steps} must be at least 2")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1); 0 keeps the last measurement only")
        if revisit_every is not None and revisit_every < 1:
            raise ValueError(f"revisit_every={revisit_every} must be at least 1, or null for never")
        self.decay = decay
        self.revisit_every = revisit_every
        self.squares = torch.zeros(num_steps, dtype=torch.float64, device="cpu")
        self.freedom = torch.zeros(num_steps, dtype=torch.float64, device="cpu")
        self.seen = torch.full((num_steps,), -1, dtype=torch.int64, device="cpu")

    @property
    def known(self) -> Tensor:
        """True for the steps that have an estimate, bool, shape (T,)."""
        return self.freedom > 0

    @property
    def estimate(self) -> Tensor:
        """Variance of the reward that each step explains, NaN where unknown, float64, shape (T,).

        It is at least 0, although the unbiased estimate behind it may be below.
        """
        return (self.squares / self.freedom).clamp(min=0).masked_fill(~self.known, float("nan"))

    def update(self, terms: VarianceTerms, iteration: int) -> None:
        """Add a measurement.

        Args:
            terms: What was measured, of any number of prompts.
            iteration: The training iteration, from 0.
        """
        freedom = terms.freedom.sum(dim=0)
        self.squares = self.decay * self.squares + terms.squares.sum(dim=0)
        self.freedom = self.decay * self.freedom + freedom
        self.seen[freedom > 0] = iteration

    def curve(self, iteration: int) -> Tensor:
        """The estimates as a curve whose peaks are the steps to explore.

        Steps without an estimate and those not measured for `revisit_every` iterations lie above
        all others, the longest unseen highest and the earlier one at a tie, so that no step is
        shut out for good.

        Args:
            iteration: The training iteration that the curve is for.

        Returns:
            float64, at least 0 and finite, 0 at the last step, shape (T,).
        """
        curve = torch.where(self.known, self.estimate, 0.0)
        due = ~self.known
        if self.revisit_every is not None:
            due |= iteration - self.seen >= self.revisit_every
        due[-1] = False
        steps = due.nonzero().flatten()
        steps = steps[self.seen[steps].argsort(stable=True)]
        highest = float(curve.max()) or 1.0
        lead = 1 + _LEAD * torch.arange(len(steps), 0, -1, dtype=torch.float64, device="cpu")
        curve[steps] = highest * lead
        curve[-1] = 0.0
        return curve

    def state_dict(self) -> dict[str, Tensor]:
        """The running sums and when each step was seen, for a checkpoint.

        Returns:
            Three tensors of shape (T,).
        """
        return {
            "squares": self.squares.clone(),
            "freedom": self.freedom.clone(),
            "seen": self.seen.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If it belongs to another number of steps.
        """
        if state["squares"].shape != self.squares.shape:
            raise ValueError(
                f"the checkpoint holds the variance of {len(state['squares'])} denoising steps, "
                f"but num_steps={len(self.squares)}; resume with the num_steps of the checkpoint"
            )
        self.squares, self.freedom = state["squares"].clone(), state["freedom"].clone()
        self.seen = state["seen"].clone()
