"""Replay: a rollout's transitions, scored again under the policy as it is now."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.exploration import ExplorationSchedule
from aegpo.losses import TransitionTerms, gaussian_log_ratio
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Conditioning, Policy
from aegpo.sde import SDE, GaussianStep
from aegpo.tree import RolloutTree


@dataclass
class Replay:
    """What an update needs to know about one rollout.

    Attributes:
        policy: The policy that is updated.
        sde: The SDE of the rollout.
        cond: Conditioning of the batch's prompts, B rows.
        tree: The rollout.
        schedule: Its exploration schedule, B rows.
        advantages: Advantage of each transition, shape (E,).
        kept: True where a transition is trained on, bool, shape (E,); None for all of them.
    """

    policy: Policy
    sde: SDE
    cond: Conditioning
    tree: RolloutTree
    schedule: ExplorationSchedule
    advantages: Tensor
    kept: Tensor | None = None
    old_mean: Tensor = field(init=False)
    sensitivity: Tensor = field(init=False)
    mean_std: Tensor = field(init=False)
    mean_std_per_sensitivity: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Take the behavior policy's means from the rollout."""
        self.old_mean = self.tree.transitions.mean
        std, self.sensitivity = self._scales()
        # Over all ranks: a weight may not depend on which prompts lie beside its own.
        self.mean_std = all_gather_rows(std)[0].mean()
        self.mean_std_per_sensitivity = all_gather_rows(std / self.sensitivity)[0].mean()

    def _times(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = self.tree.transitions.step[rows]
        prompt = self.tree.transitions.prompt[rows]
        eta = self.schedule.eta.to(step.device)[prompt, step]
        return self.tree.sigmas[step], self.tree.sigmas[step + 1], eta

    def _scales(self) -> tuple[Tensor, Tensor]:
        """Return each transition's deviation and |d mean / d prediction|, both of shape (E,).

        No prediction is needed for either: the mean is affine in it, so at latents of 0 and a
        prediction of 1 the mean is the derivative itself.
        """
        rows = torch.arange(len(self.tree.transitions), device=self.tree.transitions.step.device)
        zeros = torch.zeros_like(self.tree.transitions.latents[:, :1, :1, :1])
        step = self.sde.step(zeros + 1, zeros, *self._times(rows))
        return step.std.flatten(), step.mean.flatten().abs()

    def step(self, rows: Tensor) -> GaussianStep:
        """Predict the distribution of the next latents of some transitions.

        It calls the same `Policy.forward` and `SDE.step` as the rollout, so that before the first
        update the ratio is 1.

        Args:
            rows: Which transitions, shape (n,) int64.

        Returns:
            The step of n rows, with gradient.
        """
        latents = self.tree.transitions.latents[rows]
        sigma, sigma_next, eta = self._times(rows)
        cond = self.cond.select(self.tree.transitions.prompt[rows])
        return self.sde.step(self.policy(latents, sigma, cond), latents, sigma, sigma_next, eta)

    def terms(self, rows: Tensor) -> tuple[GaussianStep, TransitionTerms]:
        """Set the current policy against the one that drew the transitions.

        Args:
            rows: Which transitions, shape (n,) int64.

        Returns:
            The current step, and what the loss is made of.
        """
        step = self.step(rows)
        sigma, sigma_next, _ = self._times(rows)
        std = step.std.flatten()
        drift = ((step.mean - self.old_mean[rows]) ** 2).flatten(1).mean(1) / (2 * std**2)
        next_latents = self.tree.transitions.next_latents[rows]
        return step, TransitionTerms(
            log_ratio=gaussian_log_ratio(step.mean, self.old_mean[rows], next_latents, std),
            drift=drift,
            std=std,
            dt=sigma - sigma_next,
            mean_std=self.mean_std,
            sensitivity=self.sensitivity[rows],
            mean_std_per_sensitivity=self.mean_std_per_sensitivity,
        )

    @torch.no_grad()
    def rescore(self, micro_batches: list[Tensor]) -> Tensor:
        """Compute the old means again on the update's own micro-batches.

        Below fp32 a kernel's result depends on the shape of the batch, so the means of the
        rollout's large batches would make the first ratio differ from 1.

        Args:
            micro_batches: Transition numbers, each of shape (n,) int64.

        Returns:
            Largest change of a log-prob that it made, a scalar.
        """
        self.old_mean = self.old_mean.clone()
        change = torch.zeros((), device=self.old_mean.device)
        for rows in micro_batches:
            step = self.step(rows)
            log_prob = step.log_prob(self.tree.transitions.next_latents[rows])
            deviation = (log_prob - self.tree.transitions.log_prob[rows]).abs().amax()
            change = torch.maximum(change, deviation)
            self.old_mean[rows] = step.mean
        return change

    def split(self, index: Tensor, num_updates: int, noise: KeyedNoise) -> list[Tensor]:
        """Deal every prompt's transitions to the optimizer steps of one inner epoch.

        Each prompt's transitions are shuffled and dealt in turn, so that every update sees every
        prompt. The shuffle is keyed by the prompt, so it does not depend on which rank holds
        which prompts.

        Args:
            index: Dataset row of each prompt, shape (B,) int64.
            num_updates: Optimizer steps per inner epoch.
            noise: Keyed noise of the iteration.

        Returns:
            `num_updates` tensors of transition numbers, together a permutation of 0..E-1, less
            those that are pruned.
        """
        prompt = self.tree.transitions.prompt
        if self.kept is not None:
            prompt = prompt.where(self.kept, -1)
        update = torch.full_like(prompt, -1)
        for row, key in enumerate(index.tolist()):
            own = (prompt == row).nonzero().flatten()
            order = noise.permutation("updates", (key,), len(own)).to(own.device)
            update[own[order]] = torch.arange(len(own), device=own.device) % num_updates
        return [(update == number).nonzero().flatten() for number in range(num_updates)]
