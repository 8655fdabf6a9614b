"""Samples: what the updates of one iteration are trained on."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aegpo.noise import KeyedNoise


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


class Samples(abc.ABC):
    """n training samples of one rollout, each with a loss under the policy as it is now."""

    first_is_old: bool = False
    """Whether `first_loss` and `rescore` are called in any precision, not only below fp32."""

    @property
    @abc.abstractmethod
    def row(self) -> Tensor:
        """Row of each sample's prompt in the batch, -1 where it is left out, shape (n,) int64."""

    @abc.abstractmethod
    def loss(self, which: Tensor) -> LossTerms:
        """Score some samples under the present policy, charging the evaluations it takes.

        Args:
            which: Which samples, shape (m,) int64.

        Returns:
            Loss, with gradient, and statistics, each of shape (m,).
        """

    def active(self, which: Tensor) -> Tensor:
        """Those of some samples that can have a gradient; the others are not evaluated.

        Args:
            which: Which samples, shape (m,) int64.

        Returns:
            Some or all of them, in their order.
        """
        return which

    def first_loss(self, which: Tensor) -> LossTerms:
        """The loss under the very weights that drew the samples, each being its own old policy.

        It is called below fp32, or with `first_is_old`, for the samples of an iteration's first
        update, in place of `rescore` and `loss`: what they would compare is one prediction.

        Args:
            which: Which samples, shape (m,) int64.

        Returns:
            As `loss`; later passes over these samples compare with what is predicted now.
        """
        return self.loss(which)

    def rescore(self, micro_batches: list[Tensor]) -> None:
        """Compute again, on the updates' own micro-batches, what the rollout scored.

        It is called below fp32, where a kernel's result depends on the shape of the batch, or with
        `first_is_old`, before the first optimizer step, for the samples of all updates but the
        first.

        Args:
            micro_batches: Sample numbers, each of shape (m,) int64.
        """
        del micro_batches

    def strata(self, which: Tensor) -> list[Tensor]:
        """Part the samples of an iteration's first update, whose gradients are wanted one by one.

        Args:
            which: The samples, shape (m,) int64.

        Returns:
            All of them, in one part or several, some of which may be empty.
        """
        return [which]

    def note_gradients(self, stratum: int, parameters: Sequence[nn.Parameter]) -> None:
        """Take note that the backward passes of a stratum are done, all of them on every rank.

        Args:
            stratum: Its number among those of `strata`.
            parameters: The trained parameters, with gradients that grow from stratum to stratum
                and that are this rank's alone.
        """
        del stratum, parameters

    @property
    def change(self) -> Tensor | None:
        """Largest change of a log-prob by scoring again so far, a scalar; None without any."""
        return None

    def split(self, index: Tensor, num_updates: int, noise: KeyedNoise) -> list[Tensor]:
        """Deal every prompt's samples to the optimizer steps of one inner epoch.

        Each prompt's samples are shuffled and dealt in turn, so that every update sees every
        prompt. The shuffle is keyed by the prompt, so it does not depend on which rank holds
        which prompts.

        Args:
            index: Dataset row of each prompt, shape (B,) int64.
            num_updates: Optimizer steps per inner epoch.
            noise: Keyed noise of the iteration.

        Returns:
            `num_updates` tensors of sample numbers, together a permutation of 0..n-1, less those
            that are left out.
        """
        device, rows = self.row.device, self.row.cpu()
        update = torch.full_like(rows, -1)
        for row, key in enumerate(index.tolist()):
            own = (rows == row).nonzero().flatten()
            order = noise.permutation("updates", (key,), len(own))
            update[own[order]] = torch.arange(len(own), device="cpu") % num_updates
        dealt = [(update == number).nonzero().flatten() for number in range(num_updates)]
        return [which.to(device) for which in dealt]
