"""The clipped policy loss of one transition, and how a step's place in the schedule weighs in it.

Everything is per transition, shape (n,): the caller sums. Log ratios are means over the latent's
dimensions, the true log ratio divided by their number, which is why clip ranges are 1e-3 to 1e-6.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aegpo.objectives.samples import LossTerms
from aegpo.objectives.transition_weights import TransitionTerms, TransitionWeight


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
        clip_range: ε, in (0, 1], on the scale of the ratio; at 1 only what grows is held.

    Returns:
        Loss, ratio and where the clip holds, each of shape (n,).

    Raises:
        ValueError: If the shapes differ or `clip_range` is outside (0, 1].

    Examples:
        Ratios of 2 and 1/2 under a clip range of 0.1. What has already moved the way that its
        advantage asks for is held: 1.1 of a good transition, 0.9 of a bad one. What has moved the
        wrong way keeps its whole loss, and with it its gradient:

        >>> log_ratio = torch.tensor([2.0, 0.5, 2.0, 0.5]).log()
        >>> stats = surrogate(log_ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip_range=0.1)
        >>> stats.loss
        tensor([-1.1000, -0.5000,  2.0000,  0.9000])
        >>> stats.clipped
        tensor([ True, False, False,  True])
    """
    # Unequal shapes would broadcast to (n, n) without a word.
    if log_ratio.shape != advantages.shape:
        raise ValueError(
            "log_ratio and advantages need one value per transition, but got shapes "
            f"{tuple(log_ratio.shape)} and {tuple(advantages.shape)}"
        )
    if not 0 < clip_range <= 1:
        raise ValueError(f"clip_range={clip_range} must be above 0 and at most 1")
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    beyond = (advantages > 0) & (ratio > 1 + clip_range)
    below = (advantages < 0) & (ratio < 1 - clip_range)
    return SurrogateStats(
        loss=torch.maximum(-advantages * ratio, -advantages * bounded),
        ratio=ratio,
        clipped=beyond | below,
    )


def masked_surrogate(
    log_ratio: Tensor, divergence: Tensor, advantages: Tensor, bound: float
) -> SurrogateStats:
    """The surrogate with a mask in place of the clip (Flow-DPPO, arXiv 2606.11025).

    -A r, without a gradient where the KL to the old policy is at the bound or above and the
    gradient would raise it: the ratio has moved the way that the advantage asks for. The ratio is a
    sample of how far the policies are apart, the KL of two Gaussians of equal deviation is known.

    Args:
        log_ratio: Log of the policy ratio, with gradient, shape (n,).
        divergence: Exact KL to the old policy, per dimension, at least 0, shape (n,).
        advantages: Advantage of each sample, shape (n,).
        bound: KL from which on samples are dropped, above 0.

    Returns:
        Loss, ratio and where samples are dropped, each of shape (n,).

    Examples:
        Beyond the bound a good sample that is likelier by now, and a bad one that is less likely,
        are dropped. What has moved the wrong way is brought back:

        >>> log_ratio = torch.tensor([2.0, 0.5, 2.0, 0.5]).log()
        >>> far = torch.full((4,), 1e-3)
        >>> masked_surrogate(log_ratio, far, torch.tensor([1.0, 1.0, -1.0, -1.0]), 1e-5).clipped
        tensor([ True, False, False,  True])
    """
    ratio = log_ratio.exp()
    dropped = (divergence.detach() >= bound) & (advantages * log_ratio.detach() > 0)
    loss = -advantages * ratio
    return SurrogateStats(loss=loss.where(~dropped, loss.detach()), ratio=ratio, clipped=dropped)


def policy_loss(
    terms: TransitionTerms,
    advantages: Tensor,
    clip_range: float,
    *,
    weight: TransitionWeight,
    kl: Tensor | None = None,
    kl_coeff: float = 0.0,
    divergence_bound: float | None = None,
) -> LossTerms:
    """The GRPO objective of n transitions: weight · clipped surrogate + β KL.

    Args:
        terms: The transitions under the current and the behavior policy.
        advantages: Advantage of each transition, shape (n,).
        clip_range: ε of the clipped surrogate, in (0, 1).
        weight: How much each transition counts, by its step.
        kl: KL to the reference policy (`GaussianStep.kl`), with gradient, shape (n,); or None.
        kl_coeff: β, the weight of the KL.
        divergence_bound: KL to the behavior policy from which on transitions are masked, in place
            of the clip; None for the clip.

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
    if divergence_bound is None:
        stats = surrogate(log_ratio, advantages, clip_range)
    else:
        stats = masked_surrogate(log_ratio, terms.drift, advantages, divergence_bound)
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
