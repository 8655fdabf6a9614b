"""How a transition's place in the schedule weighs in the loss."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TransitionTerms:
    """What is known about n transitions under the current and the behavior policy.

    Args:
        log_ratio: Log-prob under the current policy minus that under the behavior policy, mean
            over dimensions; fp32 with gradient, shape (n,).
        drift: mean over dimensions of (mean - old mean)² / (2 std²), with gradient, shape (n,).
        std: Standard deviation of the next latents, √dt included, above 0; shape (n,).
        dt: Step size sigma_i - sigma_{i+1}, above 0; shape (n,).
        mean_std: Mean of `std` over all transitions of the iteration, above 0; scalar or (n,).
        sensitivity: |d mean / d prediction|, by which the step's mean follows the prediction,
            above 0; shape (n,).
        mean_std_per_sensitivity: Mean of `std / sensitivity` over all transitions of the iteration,
            above 0; scalar or (n,).
    """

    log_ratio: Tensor
    drift: Tensor
    std: Tensor
    dt: Tensor
    mean_std: Tensor
    sensitivity: Tensor
    mean_std_per_sensitivity: Tensor


class WeightedRatio(NamedTuple):
    """A transition's log ratio as the loss shall see it, and its weight in the loss, both (n,)."""

    log_ratio: Tensor
    weight: Tensor


class TransitionWeight(abc.ABC):
    """How much a transition counts in the loss, by its step."""

    @abc.abstractmethod
    def __call__(self, terms: TransitionTerms) -> WeightedRatio:
        """Weigh n transitions.

        Args:
            terms: The transitions.

        Returns:
            The log ratio that is exponentiated and clipped, with gradient, and the factor on the
            clipped term, without; both of shape (n,).
        """


class EqualWeight(TransitionWeight):
    """Every transition counts the same, as in Flow-GRPO."""

    def __call__(self, terms: TransitionTerms) -> WeightedRatio:
        """The plain log ratio, weight 1; see `TransitionWeight.__call__`."""
        return WeightedRatio(terms.log_ratio, torch.ones_like(terms.log_ratio))


class StdWeight(TransitionWeight):
    """A transition counts by the noise it drew, Eq. 8 of TempFlow-GRPO (arXiv 2508.04324).

    The weight is std / mean std: 1 on average over the iteration's transitions. It counters the
    gradient of the log-prob, which grows as 1/std towards the image while the reward depends less
    and less on what is drawn there. The ratio is the plain one, so clip ranges carry over from
    `EqualWeight`.
    """

    def __call__(self, terms: TransitionTerms) -> WeightedRatio:
        """The plain log ratio, weighted by std; see `TransitionWeight.__call__`."""
        weight = (terms.std / terms.mean_std).detach()
        return WeightedRatio(terms.log_ratio, weight.expand_as(terms.log_ratio))


class SensitivityWeight(TransitionWeight):
    """A transition counts so that its gradient no longer grows with its step.

    The mean of a step is affine in the prediction, so the gradient of the log-prob with respect
    to the prediction is z · (d mean / d prediction) / std for the noise z that was drawn. From
    noise to image its scale grows: 26-fold over the first nine of SD3's ten steps under Flow-SDE.
    The weight is std / |d mean / d prediction|, 1 on average over the iteration's transitions,
    under which that scale is the same at every step, for any SDE and noise level. How strongly the
    prediction depends on the network's parameters may still differ by step. The ratio is the
    plain one, so clip ranges carry over from `EqualWeight`.
    """

    def __call__(self, terms: TransitionTerms) -> WeightedRatio:
        """The plain log ratio, weighted by std / sensitivity; see `TransitionWeight.__call__`."""
        weight = terms.std / terms.sensitivity / terms.mean_std_per_sensitivity
        return WeightedRatio(terms.log_ratio, weight.detach().expand_as(terms.log_ratio))


class RatioNorm(TransitionWeight):
    """Ratio normalization and gradient reweighting of GRPO-Guard (arXiv 2510.22319).

    The log ratio becomes (log ratio + drift) · std, which is the mean over dimensions of
    z (mean - old mean) for the noise z that was drawn. It has mean 0 under the behavior policy
    (the plain one is biased by -drift, so that clipping favors one side) and a spread that no
    longer depends on 1/std. The clipped term is divided by dt. The ratio is smaller than the
    plain one by the factor std, so clip ranges do not carry over: GRPO-Guard's public settings
    lie near 2e-6 where Flow-GRPO uses 1e-4.
    """

    def __call__(self, terms: TransitionTerms) -> WeightedRatio:
        """The normalized log ratio, weight 1/dt; see `TransitionWeight.__call__`."""
        return WeightedRatio((terms.log_ratio + terms.drift) * terms.std, 1 / terms.dt)
