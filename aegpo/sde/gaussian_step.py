"""A denoising step as a Gaussian distribution: sampling, log-prob and KL, written once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianStep:
    """The distribution of the next latents given the present ones, independent over dimensions.

    Attributes:
        mean: (n, ...) fp32.
        std: (n, 1, ...) fp32, the standard deviation of the next latents, sqrt(-dt) included;
            0 in rows that are deterministic.
    """

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        """Number of rows, n."""
        return self.mean.shape[0]

    def select(self, rows: Tensor | Sequence[int]) -> GaussianStep:
        """Picks rows, in the order given.

        Args:
            rows: Row numbers (m,), or a mask (n,) bool.

        Returns:
            The step of those rows.
        """
        rows = torch.as_tensor(rows, device=self.mean.device)
        rows = rows if rows.dtype == torch.bool else rows.long()
        return GaussianStep(self.mean[rows], self.std[rows])

    def sample(self, noise: Tensor) -> Tensor:
        """Draws the next latents.

        Args:
            noise: (n, ...) standard normal; without effect in deterministic rows.

        Returns:
            (n, ...) fp32, ``mean + std * noise``.
        """
        return self.mean + self.std * noise.float()

    def log_prob(self, next_latents: Tensor) -> Tensor:
        """Log density of the next latents, the mean over dimensions and not their sum.

        The mean is the convention of Flow-GRPO, DanceGRPO and their successors; ratios are then the
        true ratios to the power 1/dimensions, and clip ranges are accordingly small.

        Args:
            next_latents: (n, ...) where the density is wanted; no gradient goes into them.

        Returns:
            (n,) fp32, in nats per dimension.

        Raises:
            ValueError: If a row is deterministic; looked at on the CPU only.
        """
        self._require_stochastic("log_prob")
        deviation = (next_latents.detach().float() - self.mean) / self.std
        std = self.std.flatten(1).mean(1)
        return (
            -0.5 * deviation.square().flatten(1).mean(1) - std.log() - 0.5 * math.log(2 * math.pi)
        )

    def kl(self, other: GaussianStep) -> Tensor:
        """Exact KL(self || other), the mean over dimensions.

        Args:
            other: The step of the other policy from the same latents, n rows.

        Returns:
            (n,) fp32, in nats per dimension.

        Raises:
            ValueError: If a row of either is deterministic; looked at on the CPU only.
        """
        self._require_stochastic("kl")
        other._require_stochastic("kl")
        distance = ((self.mean - other.mean) / other.std).square().flatten(1).mean(1)
        # Written so that equal deviations contribute exactly nothing, not 1/2 - 1/2 with rounding.
        ratio = (self.std / other.std).flatten(1).mean(1)
        return 0.5 * (distance + (ratio.square() - 1)) - ratio.log()

    def _require_stochastic(self, quantity: str) -> None:
        # Elsewhere the host would wait for the device in every step.
        if self.std.device.type == "cpu" and bool((self.std == 0).any()):
            rows = (self.std.flatten(1).amax(1) == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"{quantity} needs a stochastic step, but rows {rows[:8]} of {len(self)} are "
                "deterministic (std = 0); select the rows with eta > 0 first, and leave the last "
                "transition out, whose deviation vanishes under CPS"
            )
