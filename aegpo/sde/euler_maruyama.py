"""Euler-Maruyama steps on the reverse SDE: Flow-SDE and Dance-SDE."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from aegpo.sde.base import SDE, Coefficients

# The start of a schedule is 1 up to fp32 rounding; one rounding step away from it, the guard of
# Flow-SDE's singularity must still hold.
_AT_NOISE = 1.0 - 1e-6


class _EulerMaruyama(SDE):
    """Euler-Maruyama on the reverse SDE that keeps the flow's marginals, diffusion g(sigma).

    ``mean = x + v dt + g^2 / (2 sigma) (x + (1 - sigma) v) dt`` and ``std = g sqrt(-dt)``.
    """

    @abc.abstractmethod
    def diffusion(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Tensor:
        """The coefficient g of the noise, (n,), without sqrt(-dt)."""

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Coefficients:
        """The Euler-Maruyama step; see `SDE.coefficients`."""
        dt = sigma_next - sigma
        diffusion = self.diffusion(sigma, sigma_next, eta)
        drift = diffusion.square() / (2 * sigma)
        return Coefficients(
            latents=1 + drift * dt,
            prediction=(1 + drift * (1 - sigma)) * dt,
            std=diffusion * (-dt).sqrt(),
        )


class FlowSDE(_EulerMaruyama):
    """The Flow-SDE step of Flow-GRPO (arXiv 2505.05470): g = eta sqrt(s / (1 - s)).

    Noise is largest at the start. At sigma = 1, where g is infinite, the schedule's second sigma
    stands in under the root; it is the sigma_next of that row. Usual noise level 0.7 for SD3.5-M,
    0.9 for FLUX.
    """

    default_eta: ClassVar[float] = 0.7

    def diffusion(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Tensor:
        """The coefficient g; see the class."""
        guarded = torch.where(sigma >= _AT_NOISE, sigma_next, sigma)
        return eta * (sigma / (1 - guarded)).sqrt()


class DanceSDE(_EulerMaruyama):
    """The SDE step of DanceGRPO (arXiv 2505.07818): constant g = eta.

    Usual noise level 0.3. The drift divides by sigma: on schedules that end in a very small sigma
    (SD3's own ends in 0.009) the last stochastic steps are overdriven.
    """

    default_eta: ClassVar[float] = 0.3

    def diffusion(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Tensor:
        """The coefficient g; see the class."""
        return eta
