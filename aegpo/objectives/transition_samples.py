"""Replay: a rollout's transitions, scored again under the policy as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from aegpo.distributed import all_gather_rows
from aegpo.exploration import ExplorationSchedule
from aegpo.objectives.half_gradients import HalfGradients
from aegpo.objectives.samples import LossTerms, Samples
from aegpo.objectives.surrogate import gaussian_log_ratio, policy_loss
from aegpo.objectives.transition_weights import (
    EqualWeight,
    TransitionTerms,
    TransitionWeight,
)
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning
from aegpo.rollout import RolloutTree
from aegpo.sde import SDE, GaussianStep

KLNormalization = Literal["variance", "diffusion"]
KL_NORMALIZATIONS: tuple[str, ...] = get_args(KLNormalization)


@dataclass
class Replay(Samples):
    """The transitions of one rollout as samples of the policy gradient.

    Attributes:
        policy: The policy that is updated.
        sde: The SDE of the rollout.
        cond: Conditioning of the batch's prompts, B rows.
        tree: The rollout.
        schedule: Its exploration schedule, B rows.
        advantages: Advantage of each transition, shape (E,).
        kept: True where a transition is trained on, bool, shape (E,); None for all of them.
        clip_range: Half width of the clip on the ratio, in (0, 1).
        weight: How much a transition counts, by its step.
        kl_coeff: Weight of the KL to the reference policy; 0 skips the reference evaluations.
        kl_normalization: What the squared difference of the means is divided by. "variance": twice
            the variance of the step, which gives the KL itself. "diffusion": twice the squared
            diffusion coefficient, the variance without the step's |dt|, as the public code of
            Flow-GRPO (arXiv 2505.05470) and its coefficients of 0.04 to 0.01 have it: the KL
            times |dt|, smaller by 25 at the first of 10 steps and by 4 at the last noisy one.
        divergence_bound: KL to the behavior policy, per dimension, from which on a transition is
            dropped whose gradient would raise it, in place of the clip; None for the clip.
        halves: What compares the gradients of each step's two halves of the prompts; None if
            nothing does.
    """

    policy: Policy
    sde: SDE
    cond: Conditioning
    tree: RolloutTree
    schedule: ExplorationSchedule
    advantages: Tensor
    kept: Tensor | None = None
    clip_range: float = 1e-3
    weight: TransitionWeight = field(default_factory=EqualWeight)
    kl_coeff: float = 0.0
    kl_normalization: KLNormalization = "variance"
    divergence_bound: float | None = None
    halves: HalfGradients | None = None
    _eta: Tensor = field(init=False, repr=False)
    old_mean: Tensor = field(init=False)
    largest_change: Tensor = field(init=False)
    sensitivity: Tensor = field(init=False)
    mean_std: Tensor = field(init=False)
    mean_std_per_sensitivity: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Take the behavior policy's means from the rollout."""
        self.old_mean = self.tree.transitions.mean
        self._eta = self.schedule.eta.to(self.old_mean.device)  # once, not in each micro-batch
        self.largest_change = torch.zeros((), device=self.old_mean.device)
        std, self.sensitivity = self._scales()
        # Over all ranks: a weight may not depend on which prompts lie beside its own.
        self.mean_std = all_gather_rows(std)[0].mean()
        self.mean_std_per_sensitivity = all_gather_rows(std / self.sensitivity)[0].mean()

    def _times(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = self.tree.transitions.step[which]
        row = self.tree.transitions.row[which]
        eta = self._eta[row, step]
        return self.tree.sigmas[step], self.tree.sigmas[step + 1], eta

    def _scales(self) -> tuple[Tensor, Tensor]:
        """Return each transition's deviation and |d mean / d prediction|, both of shape (E,).

        No prediction is needed for either: the mean is affine in it, so at latents of 0 and a
        prediction of 1 the mean is the derivative itself.
        """
        which = torch.arange(len(self.tree.transitions), device=self.tree.transitions.step.device)
        zeros = torch.zeros_like(self.tree.transitions.latents[:, :1, :1, :1])
        step = self.sde.step(zeros + 1, zeros, *self._times(which))
        return step.std.flatten(), step.mean.flatten().abs()

    def step(self, which: Tensor) -> GaussianStep:
        """Predict the distribution of the next latents of some transitions.

        It calls the same `Policy.forward` and `SDE.step` as the rollout, so that before the first
        update the ratio is 1.

        Args:
            which: Which transitions, shape (n,) int64.

        Returns:
            The step of n transitions, with gradient.
        """
        latents = self.tree.transitions.latents[which]
        sigma, sigma_next, eta = self._times(which)
        cond = self.cond.select(self.tree.transitions.row[which])
        return self.sde.step(self.policy(latents, sigma, cond), latents, sigma, sigma_next, eta)

    def terms(self, which: Tensor) -> tuple[GaussianStep, TransitionTerms]:
        """Set the current policy against the one that drew the transitions.

        Args:
            which: Which transitions, shape (n,) int64.

        Returns:
            The current step, and what the loss is made of.
        """
        step = self.step(which)
        return step, self._compared(which, step)

    def _compared(self, which: Tensor, step: GaussianStep) -> TransitionTerms:
        sigma, sigma_next, _ = self._times(which)
        std = step.std.flatten()
        drift = ((step.mean - self.old_mean[which]) ** 2).flatten(1).mean(1) / (2 * std**2)
        next_latents = self.tree.transitions.next_latents[which]
        return TransitionTerms(
            log_ratio=gaussian_log_ratio(step.mean, self.old_mean[which], next_latents, std),
            drift=drift,
            std=std,
            dt=sigma - sigma_next,
            mean_std=self.mean_std,
            sensitivity=self.sensitivity[which],
            mean_std_per_sensitivity=self.mean_std_per_sensitivity,
        )

    @property
    def row(self) -> Tensor:
        """Each transition's prompt, -1 where it is pruned; see `Samples.row`."""
        row = self.tree.transitions.row
        return row if self.kept is None else row.where(self.kept, -1)

    def active(self, which: Tensor) -> Tensor:
        """Without a KL a transition without advantage has no gradient; see `Samples.active`."""
        return which if self.kl_coeff > 0 else which[self.advantages[which] != 0]

    def loss(self, which: Tensor) -> LossTerms:
        """The clipped objective and its KL under the present policy; see `Samples.loss`."""
        with self.policy.evaluations.charge("update"):
            step, terms = self.terms(which)
        return self._loss(which, step, terms)

    def first_loss(self, which: Tensor) -> LossTerms:
        """The same with each prediction as its own old one; see `Samples.first_loss`."""
        with self.policy.evaluations.charge("update"):
            step = self.step(which)
        self._take_over(which, step)
        return self._loss(which, step, self._compared(which, step))

    def _loss(self, which: Tensor, step: GaussianStep, terms: TransitionTerms) -> LossTerms:
        kl = None
        if self.kl_coeff > 0:
            charge = self.policy.evaluations.charge("reference")
            with torch.no_grad(), self.policy.reference(), charge:
                reference = self.step(which)
            kl = step.kl(reference)
            if self.kl_normalization == "diffusion":
                kl = kl * terms.dt
        return policy_loss(
            terms,
            self.advantages[which],
            clip_range=self.clip_range,
            weight=self.weight,
            kl=kl,
            kl_coeff=self.kl_coeff,
            divergence_bound=self.divergence_bound,
        )

    @torch.no_grad()
    def rescore(self, micro_batches: list[Tensor]) -> None:
        """Compute the old means again; see `Samples.rescore`.

        The means of the rollout's large batches would make the first ratio differ from 1.
        """
        for which in micro_batches:
            with self.policy.evaluations.charge("rollout"):
                step = self.step(which)
            self._take_over(which, step)

    def strata(self, which: Tensor) -> list[Tensor]:
        """By step and half of the prompts, where that is measured; see `Samples.strata`."""
        if self.halves is None:
            return [which]
        step, row = (self.tree.transitions.step[which].cpu(), self.row[which].cpu())
        steps = self.schedule.stochastic.any(0).nonzero().flatten()
        return self.halves.strata(which, torch.searchsorted(steps, step), row)

    def note_gradients(self, stratum: int, parameters: Sequence[nn.Parameter]) -> None:
        """Keep each stratum's gradient, and at the last one compare the halves; see `Samples`."""
        if self.halves is not None:
            self.halves.note(stratum, parameters)

    @property
    def change(self) -> Tensor:
        """Largest |log-prob - the rollout's| of what was scored again; see `Samples.change`."""
        return self.largest_change

    @torch.no_grad()
    def _take_over(self, which: Tensor, step: GaussianStep) -> None:
        """Let the present policy be the old one of some transitions."""
        if self.old_mean is self.tree.transitions.mean:  # what was rolled out stays
            self.old_mean = self.old_mean.clone()
        log_prob = step.log_prob(self.tree.transitions.next_latents[which])
        deviation = (log_prob - self.tree.transitions.log_prob[which]).abs().amax()
        self.largest_change = torch.maximum(self.largest_change, deviation)
        self.old_mean[which] = step.mean.detach()
