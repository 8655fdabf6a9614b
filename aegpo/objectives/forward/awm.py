"""Advantage Weighted Matching (arXiv 2509.25050): the policy gradient of a matching error.

In the place of an SDE's log-prob stands the error of the prediction at a noised image. Any sampler
may draw the images, and what is clipped is the ratio of two such surrogates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.objectives.base import Experience
from aegpo.objectives.forward.agreement import LevelAgreement
from aegpo.objectives.forward.levels import LevelRule, NoiseLevels
from aegpo.objectives.forward.likelihood import (
    GAUSSIAN,
    WEIGHTINGS,
    Weighting,
    gaussian_weight,
    log_likelihood,
)
from aegpo.objectives.forward.objective import ForwardObjective, Penalties, Ramp
from aegpo.objectives.forward.samples import ForwardSamples, Noised
from aegpo.objectives.samples import LossTerms
from aegpo.objectives.surrogate import masked_surrogate, surrogate


class AWM(ForwardObjective):
    """Advantage Weighted Matching: PPO's clipped term of L = -w(σ) mean (v - u)².

    The ratio is exp(L - L_old) at one noise level and noise, u = ε - x_0, so the first gradient is
    A w(σ) times that of the error. In an iteration's first update L_old is L itself and costs
    nothing; for later ones it is computed once per sample, before the weights move, and counts as
    `cost/rollout`. The defaults are those of the public code for SD3.5 on GenEval, except that its
    rollouts draw some noise, and its range of levels leaves out the first of fourteen steps.

    Args:
        weighting: w(σ) and the kind of error, see `log_likelihood`.
        clip_range: Half width of the clip on the ratio, in (0, 1]; 1 is loose.
        divergence_bound: KL per dimension to the policy that drew an image, w(σ) mean (v - v_old)²,
            from which on it is dropped if its gradient would raise that (Flow-DPPO), in place of
            the clip; of Gaussian weightings only. It keeps v_old of every sample. None for the
            clip.
        advantage_clip: Advantage that counts as 1; larger ones count as 1, too. Penalties are
            weighed against that.
        times_per_image: Noise levels at which each image is trained on; each costs an evaluation
            and a backward pass, and in later updates of an iteration another evaluation.
        levels: Which noise levels these are: one from each of so many equal parts of the schedule
            ("stratified"), "random" ones of the rollout's, none twice, or among those of the steps
            that the step selector chose ("selected"); or a `LevelAgreement`, which learns where to
            draw.
        level_range: Part of the schedule that they come from, as shares of its steps: [0, 0.5] is
            its noisier half.
        kl_coeff: Weight of the mean squared difference to the reference policy's prediction; 0
            skips the reference evaluations.
        anchor_coeff: Weight of the same at one more level of each image, from the part of the
            schedule outside `level_range`, where nothing else holds the prediction in place while
            the weights move; it costs an evaluation and a backward pass. 0 for none.
        ema_kl_coeff: Weight of the difference to an average of the policy; 0 skips its evaluations.
        ema_decay_rate: Growth of that average's decay per iteration.
        ema_decay_max: Its largest decay, in [0, 1).
        decay_rate: Growth per iteration of the decay η by which the policy that draws the rollouts
            lags behind, as in `NFT`: L_old is then its, at an evaluation for every sample.
        decay_max: Largest η, in [0, 1); 0 draws every rollout with the trained policy.
        decay_start: Iterations before η grows.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        weighting: Weighting = "generalized_huber",
        clip_range: float = 1.0,
        divergence_bound: float | None = None,
        advantage_clip: float = 5.0,
        times_per_image: int = 6,
        levels: LevelRule | LevelAgreement = "stratified",
        level_range: tuple[float, float] = (0.0, 0.9),
        kl_coeff: float = 3e-3,
        anchor_coeff: float = 0.0,
        ema_kl_coeff: float = 1.0,
        ema_decay_rate: float = 1e-3,
        ema_decay_max: float = 0.3,
        decay_rate: float = 1e-3,
        decay_max: float = 0.0,
        decay_start: int = 0,
    ) -> None:
        if weighting not in WEIGHTINGS:
            raise ValueError(
                f"AWM: weighting={weighting!r} is unknown; use one of {', '.join(WEIGHTINGS)}"
            )
        if not 0 < clip_range <= 1 or advantage_clip <= 0:
            raise ValueError(
                f"AWM: clip_range={clip_range} must be above 0 and at most 1, and "
                f"advantage_clip={advantage_clip} above 0"
            )
        if divergence_bound is not None and (divergence_bound <= 0 or weighting not in GAUSSIAN):
            raise ValueError(
                f"AWM: divergence_bound={divergence_bound} must be above 0, and is the KL of a "
                f"Gaussian weighting, {', '.join(GAUSSIAN)}, not with {weighting}"
            )
        ema = Ramp("ema_decay", ema_decay_rate, ema_decay_max)
        super().__init__(
            NoiseLevels(levels, times_per_image, level_range, anchored=anchor_coeff > 0),
            Ramp("decay", decay_rate, decay_max, decay_start),
            Penalties(kl_coeff, ema_kl_coeff, ema, anchor_coeff),
            keeps_old=False,
        )
        self.weighting: Weighting = weighting
        self.clip_range, self.advantage_clip = clip_range, advantage_clip
        self.divergence_bound = divergence_bound

    def samples(self, experience: Experience) -> AWMSamples:
        """Draw the noise levels of every image; see `Objective.samples`."""
        return AWMSamples(self, experience)


class AWMSamples(ForwardSamples[AWM]):
    """Every image of a rollout at some noise levels, with the loss of `AWM`.

    Args:
        objective: Whose settings hold.
        experience: The rollout of B prompts with N images.
    """

    def __init__(self, objective: AWM, experience: Experience) -> None:
        super().__init__(objective, experience)
        # L_old of each sample, not a number before it is known.
        self.old = torch.full_like(self.sigma, float("nan"))
        self.old_velocity: Tensor | None = None

    def active(self, which: Tensor) -> Tensor:
        """Without a penalty an image without advantage has no gradient; see `Samples.active`."""
        if self.objective.penalties.any:
            return which
        speaks = self.experience.advantages[self.image[which]] != 0
        return which[speaks | self.anchor[which]]

    def compare(self, which: Tensor, at: Noised, first: bool) -> tuple[Tensor, LossTerms]:
        """The clipped term of L against L_old; see `ForwardSamples`."""
        if first and not self.on_policy:
            self._take_over(which, at, self.predict_old(at))
        velocity = self.predict(at)
        if first and self.on_policy:
            self._take_over(which, at, velocity.detach())
        likelihood = self._likelihood(at, velocity)
        # Asked before any update, a sample is its own old one.
        old = self.old[which]
        log_ratio = likelihood - old.where(old.isfinite(), likelihood.detach())
        advantages = (at.advantages / self.objective.advantage_clip).clamp(-1, 1)
        bound = self.objective.divergence_bound
        if bound is None:
            stats = surrogate(log_ratio, advantages, self.objective.clip_range)
        else:
            divergence = self._divergence(which, at, velocity)
            stats = masked_surrogate(log_ratio, divergence, advantages, bound)
        return velocity, LossTerms(stats.loss, stats.ratio.detach(), stats.clipped)

    @torch.no_grad()
    def rescore(self, micro_batches: list[Tensor]) -> None:
        """Compute L_old, once per sample; see `Samples.rescore`."""
        for micro_batch in micro_batches:
            which = micro_batch[~self.anchor[micro_batch]]
            at = self.noised(which)
            self._take_over(which, at, self.predict_old(at))

    @torch.no_grad()
    def _take_over(self, which: Tensor, at: Noised, velocity: Tensor) -> None:
        """Let a prediction be the old one of some samples."""
        self.old[which] = self._likelihood(at, velocity).to(self.old)
        if self.objective.divergence_bound is None:
            return
        if self.old_velocity is None:
            self.old_velocity = velocity.new_zeros(len(self.sigma), *velocity.shape[1:])
        self.old_velocity[which] = velocity

    @torch.no_grad()
    def _divergence(self, which: Tensor, at: Noised, velocity: Tensor) -> Tensor:
        """KL of the two Gaussians, per dimension, shape (n,)."""
        if self.old_velocity is None:
            return torch.zeros_like(at.sigma)
        change = (velocity - self.old_velocity[which]).square().flatten(1).mean(1)
        return gaussian_weight(at.sigma, self.objective.weighting) * change

    def _likelihood(self, at: Noised, velocity: Tensor) -> Tensor:
        return log_likelihood(velocity, at.draw - at.clean, at.sigma, self.objective.weighting)
