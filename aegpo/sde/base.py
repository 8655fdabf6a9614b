"""Denoising steps as Gaussian transitions: ODE, Flow-SDE, Dance-SDE, CPS and DDIM.

Every step here is linear in the latents and in the predicted velocity, so an SDE is three numbers
per row: two coefficients of the mean and the standard deviation. Sampling, log-prob and KL are
those of `GaussianStep`.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from aegpo.gaussian_step import GaussianStep

__all__ = ["CPS", "DDIM", "ODE", "SDE", "Coefficients", "DanceSDE", "FlowSDE", "GaussianStep"]

# The start of a schedule is 1 up to fp32 rounding; one rounding step away from it, the guard of
# Flow-SDE's singularity must still hold.
_AT_NOISE = 1.0 - 1e-6


class Coefficients(NamedTuple):
    """One step, row by row: ``mean = latents * x + prediction * v``.

    Attributes:
        latents: (n,) fp32, the factor of the latents in the mean.
        prediction: (n,) fp32, the factor of the predicted velocity in the mean.
        std: (n,) fp32, the standard deviation, sqrt(-dt) included.
    """

    latents: Tensor
    prediction: Tensor
    std: Tensor


class SDE(abc.ABC):
    """How one denoising step is made stochastic.

    Attributes:
        eta_range: The least and the greatest noise level that the equations allow.
        default_eta: The noise level that the method's authors use; selectors take theirs as an
            argument.
    """

    eta_range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    default_eta: ClassVar[float]

    @abc.abstractmethod
    def coefficients(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Coefficients:
        """The step's three numbers per row, for eta > 0; what they are at eta = 0 is not used.

        Args:
            sigma: (n,) fp32 in (0, 1].
            sigma_next: (n,) fp32 in [0, sigma).
            eta: (n,) fp32, the noise level.

        Returns:
            Coefficients of the mean, and the deviation.
        """

    def step(
        self, prediction: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor, eta: Tensor
    ) -> GaussianStep:
        """One denoising step from sigma to sigma_next, all arithmetic in fp32.

        A row with ``eta == 0`` is the Euler step of the probability-flow ODE, ``x + v dt`` bit for
        bit, with deviation 0.

        Args:
            prediction: (n, ...) the predicted velocity; gradients flow through it.
            latents: (n, ...) the present latents.
            sigma: (n,) in (0, 1].
            sigma_next: (n,) in [0, sigma).
            eta: (n,) noise level of each row, within `eta_range`.

        Returns:
            The distribution of the next latents.

        Raises:
            ValueError: If shapes disagree, eta is out of range or sigma does not decrease.
        """
        rows = latents.shape[:1]
        if prediction.shape != latents.shape or any(
            value.shape != rows for value in (sigma, sigma_next, eta)
        ):
            raise ValueError(
                "a step needs prediction and latents of one shape (n, ...) and sigma, sigma_next "
                f"and eta of shape (n,), but got {tuple(prediction.shape)}, "
                f"{tuple(latents.shape)}, {tuple(sigma.shape)}, {tuple(sigma_next.shape)} and "
                f"{tuple(eta.shape)}"
            )
        sigma, sigma_next, eta = sigma.float(), sigma_next.float(), eta.float()
        self.check_eta(eta)
        if not bool((sigma_next < sigma).all()):
            raise ValueError(f"sigma must decrease, but goes from {sigma} to {sigma_next}")
        deterministic = eta == 0
        of_latents, of_prediction, std = self.coefficients(sigma, sigma_next, eta)
        # Chosen among the coefficients, not among the results: an infinite coefficient in a branch
        # that is not taken would still reach the gradient.
        of_latents = torch.where(deterministic, torch.ones_like(eta), of_latents)
        of_prediction = torch.where(deterministic, sigma_next - sigma, of_prediction)
        std = torch.where(deterministic, torch.zeros_like(eta), std)
        each = (-1,) + (1,) * (latents.dim() - 1)
        mean = latents.float() * of_latents.view(each) + prediction.float() * of_prediction.view(
            each
        )
        return GaussianStep(mean=mean, std=std.view(each))

    def check_eta(self, eta: Tensor | float) -> None:
        """Checks noise levels against `eta_range`.

        Args:
            eta: One noise level or a tensor of them.

        Raises:
            ValueError: If one is out of range or not a number.
        """
        low, high = self.eta_range
        levels = torch.as_tensor(eta)
        allowed = (levels >= low) & (levels <= high) & levels.isfinite()
        if not bool(allowed.all()):
            wrong = levels[~allowed].flatten()[0].item()
            accepted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            accepted = "0 only" if low == high else accepted
            raise ValueError(
                f"{type(self).__name__} accepts eta {accepted}, but was given {wrong:g}; "
                f"its usual noise level is {self.default_eta:g}"
            )


class ODE(SDE):
    """The deterministic Euler step; accepts eta = 0 only."""

    eta_range: ClassVar[tuple[float, float]] = (0.0, 0.0)
    default_eta: ClassVar[float] = 0.0

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Coefficients:
        """The Euler step; see `SDE.coefficients`."""
        return Coefficients(torch.ones_like(eta), sigma_next - sigma, torch.zeros_like(eta))


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


class _ExactMarginals(SDE):
    """A step that redraws a part of the noise and keeps the shares of data and noise exact.

    ``mean = (1 - s') x0 + sqrt(s'^2 - std^2) noise`` with the data x0 and the noise that the
    velocity implies and s' the next sigma: no noise beyond the schedule's is left in the image.
    """

    eta_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @abc.abstractmethod
    def redrawn(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Sine and cosine of the angle by which the noise is turned towards new noise, (n,) each.

        ``std = s' sine`` and ``sqrt(s'^2 - std^2) = s' cosine``, without cancellation.
        """

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Coefficients:
        """The step's coefficients; see `SDE.coefficients`."""
        sine, cosine = self.redrawn(sigma, sigma_next, eta)
        of_data = 1 - sigma_next
        of_noise = sigma_next * cosine
        # x0 = x - sigma v and noise = x + (1 - sigma) v
        return Coefficients(
            latents=of_data + of_noise,
            prediction=(1 - sigma) * of_noise - sigma * of_data,
            std=sigma_next * sine,
        )


class CPS(_ExactMarginals):
    """Coefficients-preserving sampling, Flow-CPS (arXiv 2509.05952); eta in [0, 1], usually 0.8.

    ``std = s' sin(eta pi/2)``. eta = 1 draws all noise anew.

    The log-prob here is the true Gaussian log density, as for every other step. Public code uses
    ``-mean (x' - mean)^2`` for this step, without ``1 / (2 std^2)`` and constants: its log ratios
    are ours times ``2 std^2``, which weighs low-noise steps down and does not share our clip
    ranges. To train with that weighting, weight the transitions by std^2.
    """

    default_eta: ClassVar[float] = 0.8

    def redrawn(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Sine and cosine of eta pi/2."""
        angle = eta * (math.pi / 2)
        return angle.sin(), angle.cos().clamp(min=0)


class DDIM(_ExactMarginals):
    """DDIM with stochasticity eta (arXiv 2010.02502, Eq. 16), as DDPO trains it; eta in [0, 1].

    In the noise levels used here, sigma = sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar)), its
    deviation is ``eta s' sqrt(1 - (s' (1 - s) / (s (1 - s')))^2)``. eta = 0 is the Euler step of
    the flow, eta = 1 the ancestral step of DDPM. Made for SD 1.5 and SDXL; valid for every model.
    """

    default_eta: ClassVar[float] = 1.0

    def redrawn(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Sine, and the cosine that belongs to it."""
        falls = sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))
        sine = eta * ((1 - falls) * (1 + falls)).clamp(min=0).sqrt()
        return sine, ((1 - sine) * (1 + sine)).clamp(min=0).sqrt()
