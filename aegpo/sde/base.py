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

from aegpo.sde.gaussian_step import GaussianStep


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
            ValueError: If shapes disagree, eta is out of range or sigma does not decrease. Values
                are looked at on the CPU only: elsewhere the host would wait for the device in every
                step, and `rollout` has looked at them all before.
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
        if eta.device.type == "cpu":
            self.check_eta(eta)
            check_falling(sigma, sigma_next)
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
        levels = eta if isinstance(eta, Tensor) else torch.tensor(eta, device="cpu")
        allowed = (levels >= low) & (levels <= high) & levels.isfinite()
        if not bool(allowed.all()):
            wrong = levels[~allowed].flatten()[0].item()
            accepted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            accepted = "0 only" if low == high else accepted
            raise ValueError(
                f"{type(self).__name__} accepts eta {accepted}, but was given {wrong:g}; "
                f"its usual noise level is {self.default_eta:g}"
            )


def check_falling(sigma: Tensor, sigma_next: Tensor) -> None:
    """Raise unless each noise level falls.

    Args:
        sigma: (n,) present levels.
        sigma_next: (n,) next levels.

    Raises:
        ValueError: If one does not.
    """
    if not bool((sigma_next < sigma).all()):
        raise ValueError(f"sigma must decrease, but goes from {sigma} to {sigma_next}")


class ODE(SDE):
    """The deterministic Euler step; accepts eta = 0 only."""

    eta_range: ClassVar[tuple[float, float]] = (0.0, 0.0)
    default_eta: ClassVar[float] = 0.0

    def coefficients(self, sigma: Tensor, sigma_next: Tensor, eta: Tensor) -> Coefficients:
        """The Euler step; see `SDE.coefficients`."""
        return Coefficients(torch.ones_like(eta), sigma_next - sigma, torch.zeros_like(eta))
