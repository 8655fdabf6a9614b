"""Noise levels by what they teach: where two halves of a batch ask for the same change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aegpo.exploration.half_batches import HalfBatches


class LevelAgreement(HalfBatches):
    """Draws noise levels in proportion to the agreement of half-batch gradients there.

    The schedule's range is cut into equal parts. Every so many iterations, in the first update, the
    gradient of each part is taken from the prompts of either half of the batch, s = <g_a, g_b> /
    (|g_a| |g_b|): the share of a gradient that is signal, up to a root. A level of any part costs
    the same, so levels are drawn in proportion to max(s, 0), averaged over the measurements, above
    a floor. What the step selector chose stands in for measurements that are still to come, so
    Entropy(t) may be the prior; without a choice all parts are equal. An image's levels are drawn
    one from each of as many equal shares of that distribution.

    Measuring costs no evaluation, only smaller micro-batches, and 2 · parts + 2 copies of the
    trained gradients.

    Args:
        parts: Parts of the range.
        floor: Share of the levels that is spread evenly, in (0, 1].
        decay: How much of the running average is kept at a measurement, in [0, 1).
        every_n_iterations: Iterations between two measurements.
        prior: Measurements that the prior counts as, above 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        parts: int = 5,
        floor: float = 0.25,
        decay: float = 0.95,
        every_n_iterations: int = 1,
        prior: float = 4.0,
    ) -> None:
        super().__init__(parts, decay, every_n_iterations)
        if not 0 < floor <= 1 or prior <= 0:
            raise ValueError(
                f"LevelAgreement: floor={floor} must be above 0 and at most 1, prior={prior} above "
                "0"
            )
        self.floor, self.prior = floor, prior
        self._measured = 0

    def learn(self, halves: Tensor, parts: Sequence[int] | None = None) -> Tensor:
        """Take in a measurement, and count it; see `HalfBatches.learn`."""
        self._measured += 1
        return super().learn(halves, parts)

    def density(self, chosen: Tensor) -> Tensor:
        """How likely a level is to come from each part.

        Args:
            chosen: Share of the prior on each part, for each of B prompts, shape (B, P), each row
                of sum 1.

        Returns:
            Shape (B, P) float64, each row of sum 1, at least floor / P.
        """
        useful = self.agreement.clamp(min=0)
        found = useful / useful.sum() if float(useful.sum()) > 0 else chosen.double()
        share = self._measured / (self._measured + self.prior)
        mixed = share * found + (1 - share) * chosen.double()
        return self.floor / self.parts + (1 - self.floor) * mixed

    def metrics(self) -> dict[str, float]:
        """Mean agreement of each part so far, and the share of levels that it gets by that."""
        even = torch.full((1, self.parts), 1 / self.parts, device="cpu")
        return self.told("levels", self.density(even)[0])

    def state_dict(self) -> dict[str, Any]:
        """The running averages: tensors and plain values only."""
        return super().state_dict() | {"measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the averages of a checkpoint, unless its parts are others.

        Args:
            state: What `state_dict` returned; empty to begin anew.
        """
        super().load_state_dict(state)
        self._measured = int(state["measured"]) if self.takes(state) else 0


def quantile(density: Tensor, share: Tensor) -> Tensor:
    """Where a piecewise constant density on [0, 1] has a share of its mass below.

    Args:
        density: Mass of each of P equal parts, each row of sum 1, all above 0; shape (n, P).
        share: In [0, 1], shape (n,).

    Returns:
        In [0, 1], shape (n,) float64.

    Examples:
        Three quarters of the mass lie in the first half:

        >>> density = torch.tensor([[0.75, 0.25]]).expand(4, -1)
        >>> quantile(density, torch.tensor([0.0, 0.375, 0.75, 0.875]))
        tensor([0.0000, 0.2500, 0.5000, 0.7500], dtype=torch.float64)
    """
    density, share = density.double(), share.double()
    parts = density.shape[1]
    upper = density.cumsum(1)
    part = torch.searchsorted(upper, share[:, None], right=True)[:, 0].clamp(max=parts - 1)
    mass = density.gather(1, part[:, None])[:, 0]
    below = upper.gather(1, part[:, None])[:, 0] - mass
    return (part + ((share - below) / mass).clamp(0, 1)) / parts
