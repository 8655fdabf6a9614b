"""Steps that keep the shares of data and noise exact: CPS and DDIM."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

from torch import Tensor

from aegpo.sde.base import SDE, Coefficients


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
