"""ForwardSamples: images of a rollout, noised again at some levels."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from aegpo.objectives.base import Experience
from aegpo.objectives.forward.objective import ForwardObjective
from aegpo.objectives.half_gradients import HalfGradients
from aegpo.objectives.samples import LossTerms, Samples
from aegpo.policies.conditioning import Conditioning


class Noised(NamedTuple):
    """n noised images, at which policies predict.

    Attributes:
        clean: The images' latents x_0, shape (n, ...).
        draw: The noise ε, shape (n, ...).
        latents: x_t = (1 - σ) x_0 + σ ε, shape (n, ...).
        sigma: σ of each row, in (0, 1], shape (n,).
        cond: Conditioning of each row's prompt.
        advantages: Advantage of each row's image, shape (n,).
    """

    clean: Tensor
    draw: Tensor
    latents: Tensor
    sigma: Tensor
    cond: Conditioning
    advantages: Tensor


Settings = TypeVar("Settings", bound=ForwardObjective)


class ForwardSamples(Samples, Generic[Settings]):
    """Every image of a rollout, at some noise levels; what the loss makes of it is a subclass's.

    Args:
        objective: Whose settings hold.
        experience: The rollout of B prompts with N images.
    """

    first_is_old = True

    def __init__(self, objective: Settings, experience: Experience) -> None:
        self.experience = experience
        self.objective = objective
        drawn = objective.levels.draw(experience)
        self.image, self.keys, self.sigma, self._share, self.anchor = drawn
        self._halves = _half_gradients(objective, experience)
        self.on_policy = objective.on_policy(experience.noise.iteration)

    @property
    def row(self) -> Tensor:
        """Each sample's prompt, -1 where the reward failed; see `Samples.row`."""
        known = self.experience.advantages.isfinite()
        return self.experience.tree.row.where(known, -1)[self.image]

    def strata(self, which: Tensor) -> list[Tensor]:
        """By part of the schedule and half of the prompts, where that is measured; see `Samples`.

        Which half a prompt is in depends on the prompt and the iteration alone.
        """
        if self._halves is None:
            return [which]
        parts = self._halves.num_strata // 2
        samples = which.cpu()
        part = (self._share[samples] * parts).long().clamp(0, parts - 1)
        row = self.experience.tree.row.cpu()[self.image.cpu()[samples]]
        return self._halves.strata(which, part, row)

    def note_gradients(self, stratum: int, parameters: Sequence[nn.Parameter]) -> None:
        """Keep each stratum's own gradient, and at the last one compare the halves."""
        if self._halves is not None:
            self._halves.note(stratum, parameters)

    def noised(self, which: Tensor) -> Noised:
        """Noise the images of some samples.

        Args:
            which: Which samples, shape (n,) int64.

        Returns:
            The same for the same samples, whatever else is asked for.
        """
        experience = self.experience
        image, sigma = self.image[which], self.sigma[which]
        clean = experience.policy.clean_latents(experience.tree.latents[image])
        draw = experience.noise.normal("forward", self.keys[which.cpu()], clean.shape[1:])
        draw = draw.to(clean.device)
        latents = torch.lerp(clean, draw, sigma.view(-1, *[1] * (clean.dim() - 1)))
        cond = experience.cond.select(experience.tree.row[image])
        return Noised(clean, draw, latents, sigma, cond, experience.advantages[image])

    def predict(self, at: Noised) -> Tensor:
        """The trained policy's velocity, with gradient; charged to the update.

        Args:
            at: Where, n rows.

        Returns:
            Shape (n, ...).
        """
        policy = self.experience.policy
        with policy.evaluations.charge("update"):
            velocity: Tensor = policy(at.latents, at.sigma, at.cond)
        return velocity

    @torch.no_grad()
    def predict_old(self, at: Noised) -> Tensor:
        """The behavior policy's velocity; charged to the rollout.

        Args:
            at: Where, n rows.

        Returns:
            Shape (n, ...).
        """
        policy = self.experience.policy
        with self.objective.behavior(policy), policy.evaluations.charge("rollout"):
            velocity: Tensor = policy(at.latents, at.sigma, at.cond)
        return velocity

    def loss(self, which: Tensor) -> LossTerms:
        """The loss and its penalties under the present policy; see `Samples.loss`."""
        return self._loss(which, first=False)

    def first_loss(self, which: Tensor) -> LossTerms:
        """The same before the weights have moved; see `Samples.first_loss`."""
        return self._loss(which, first=True)

    def _loss(self, which: Tensor, first: bool) -> LossTerms:
        anchor = self.anchor[which]
        learned = which[~anchor]
        at = self.noised(learned)
        velocity, terms = self.compare(learned, at, first)
        terms = self._penalized(at, velocity, terms)
        return self._with_anchors(which, anchor, terms) if bool(anchor.any()) else terms

    def _with_anchors(self, which: Tensor, anchor: Tensor, terms: LossTerms) -> LossTerms:
        """Join the terms of what is learned from with those that hold anchors to the reference.

        An anchor has no ratio to clip: it counts as 1.
        """
        at = self.noised(which[anchor])
        divergence = self._to_reference(at, self.predict(at))

        def among(learned: Tensor | None, held: Tensor) -> Tensor | None:
            if learned is None:
                return None
            every = learned.new_zeros(len(which)).masked_scatter(~anchor, learned)
            return every.masked_scatter(anchor, held.to(learned))

        held = divergence.detach()
        loss = among(terms.loss, self.objective.penalties.anchor_coeff * divergence)
        assert loss is not None
        return LossTerms(
            loss,
            ratio=among(terms.ratio, torch.ones_like(held)),
            clipped=among(terms.clipped, torch.zeros_like(held)),
            kl=among(terms.kl, held),
        )

    @abc.abstractmethod
    def compare(self, which: Tensor, at: Noised, first: bool) -> tuple[Tensor, LossTerms]:
        """Predict, and set the prediction against the image and the old policy.

        Args:
            which: Which samples, shape (n,) int64.
            at: Their images, noised.
            first: Whether the weights are still those that the iteration began with.

        Returns:
            The velocity, with gradient, shape (n, ...), and what is minimized but for penalties.
        """

    def _penalized(self, at: Noised, velocity: Tensor, terms: LossTerms) -> LossTerms:
        policy, penalties = self.experience.policy, self.objective.penalties
        charge = policy.evaluations.charge
        if penalties.kl_coeff > 0:
            divergence = self._to_reference(at, velocity)
            loss = terms.loss + penalties.kl_coeff * divergence
            terms = terms._replace(loss=loss, kl=divergence.detach())
        if penalties.ema_kl_coeff > 0:
            with torch.no_grad(), self.objective.averaged(policy), charge("reference"):
                average = policy(at.latents, at.sigma, at.cond)
            divergence = (velocity - average).square().flatten(1).mean(1)
            terms = terms._replace(loss=terms.loss + penalties.ema_kl_coeff * divergence)
        return terms

    def _to_reference(self, at: Noised, velocity: Tensor) -> Tensor:
        """Mean squared difference of a prediction to the reference's, shape (n,)."""
        policy = self.experience.policy
        with torch.no_grad(), policy.reference(), policy.evaluations.charge("reference"):
            reference: Tensor = policy(at.latents, at.sigma, at.cond)
        return (velocity - reference).square().flatten(1).mean(1)


def _half_gradients(objective: ForwardObjective, experience: Experience) -> HalfGradients | None:
    """What measures the agreement by level in this iteration, if anything does."""
    agreement = objective.levels.agreement
    if agreement is None or not agreement.due(experience.noise.iteration):
        return None
    return HalfGradients(
        agreement.learn,
        agreement.parts,
        experience.policy,
        experience.noise,
        experience.index,
        ("levels by LevelAgreement", "levels='stratified'"),
    )
