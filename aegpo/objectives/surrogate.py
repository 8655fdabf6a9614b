"""The clipped policy loss of one transition, and how a step's place in the schedule weighs in it.

Everything is per transition, shape (n,): the caller sums. Log ratios are means over the latent's
dimensions, the true log ratio divided by their number, which is why clip ranges are 1e-3 to 1e-6.
"""

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


class SurrogateStats(NamedTuple):
    """The clipped surrogate of n transitions.

    Attributes:
        loss: Clipped term, to be minimized, shape (n,).
        ratio: exp(log ratio), shape (n,).
        clipped: True where the clip holds the gradient back, bool, shape (n,).
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


class LossTerms(NamedTuple):
    """The loss of n samples of an update; of the policy gradient these are transitions.

    Attributes:
        loss: Everything that is minimized, to be summed by the caller, shape (n,).
        ratio: The ratio that was clipped, detached, shape (n,); None for losses without one.
        clipped: True where the clip holds the gradient back, bool, shape (n,); None likewise.
        kl: KL to the reference, unweighted and detached, shape (n,); None without it.
    """

    loss: Tensor
    ratio: Tensor | None = None
    clipped: Tensor | None = None
    kl: Tensor | None = None


def gaussian_log_ratio(mean: Tensor, old_mean: Tensor, next_latents: Tensor, std: Tensor) -> Tensor:
    """Log ratio of two Gaussian steps of equal deviation, the mean over dimensions.

    log p(x') - log p_old(x') = mean_d[(mean - old) (x' - (mean + old) / 2)] / std². It is exactly
    0 for equal means, and its rounding error shrinks with their difference; the difference of two
    rounded log-probs keeps an error near 1e-7, which a clip range of 1e-5 or 1e-6 notices.

    Args:
        mean: Mean under the current policy, with gradient, fp32, shape (n, ...).
        old_mean: Mean under the behavior policy, shape (n, ...).
        next_latents: The next latents that were drawn, shape (n, ...).
        std: Standard deviation of both, above 0, shape (n,).

    Returns:
        Log ratio, shape (n,).
    """
    shift = mean - old_mean
    # The residual is taken from the old mean first: adding two means would round away the shift.
    product = shift * ((next_latents - old_mean) - shift / 2)
    return product.flatten(1).mean(dim=1) / std.square()


def surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> SurrogateStats:
    """PPO's clipped surrogate (arXiv 1707.06347, Eq. 7), negated to be minimized.

    max(-A r, -A clip(r, 1 - ε, 1 + ε)) with r = exp(log ratio).

    Args:
        log_ratio: Log of the policy ratio, with gradient, shape (n,).
        advantages: Advantage of each transition, shape (n,).
        clip_range: ε, in (0, 1), on the scale of the ratio.

    Returns:
        Loss, ratio and where the clip holds, each of shape (n,).

    Raises:
        ValueError: If the shapes differ or `clip_range` is outside (0, 1).
    """
    # Unequal shapes would broadcast to (n, n) without a word.
    if log_ratio.shape != advantages.shape:
        raise ValueError(
            "log_ratio and advantages need one value per transition, but got shapes "
            f"{tuple(log_ratio.shape)} and {tuple(advantages.shape)}"
        )
    if not 0 < clip_range < 1:
        raise ValueError(f"clip_range={clip_range} must lie between 0 and 1")
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    beyond = (advantages > 0) & (ratio > 1 + clip_range)
    below = (advantages < 0) & (ratio < 1 - clip_range)
    return SurrogateStats(
        loss=torch.maximum(-advantages * ratio, -advantages * bounded),
        ratio=ratio,
        clipped=beyond | below,
    )


def policy_loss(
    terms: TransitionTerms,
    advantages: Tensor,
    clip_range: float,
    *,
    weight: TransitionWeight,
    kl: Tensor | None = None,
    kl_coeff: float = 0.0,
) -> LossTerms:
    """The GRPO objective of n transitions: weight · clipped surrogate + β KL.

    Args:
        terms: The transitions under the current and the behavior policy.
        advantages: Advantage of each transition, shape (n,).
        clip_range: ε of the clipped surrogate, in (0, 1).
        weight: How much each transition counts, by its step.
        kl: KL to the reference policy (`GaussianStep.kl`), with gradient, shape (n,); or None.
        kl_coeff: β, the weight of the KL.

    Returns:
        Loss and statistics, each of shape (n,).

    Raises:
        ValueError: If shapes differ, `clip_range` is outside (0, 1), or `kl_coeff` is negative or
            has no KL to weigh.
    """
    if kl_coeff < 0 or (kl_coeff > 0 and kl is None):
        raise ValueError(
            f"kl_coeff={kl_coeff} must be at least 0, and above 0 it needs the KL to the reference"
        )
    log_ratio, factor = weight(terms)
    stats = surrogate(log_ratio, advantages, clip_range)
    loss = factor * stats.loss
    if kl is not None:
        if kl.shape != loss.shape:
            raise ValueError(
                "kl needs one value per transition, but got shapes "
                f"{tuple(kl.shape)} and {tuple(loss.shape)}"
            )
        loss = loss + kl_coeff * kl
    return LossTerms(
        loss=loss,
        ratio=stats.ratio.detach(),
        clipped=stats.clipped,
        kl=None if kl is None else kl.detach(),
    )
