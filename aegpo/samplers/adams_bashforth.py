"""The two-step Adams-Bashforth method on steps of any length."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.samplers.base import Sampler


class AdamsBashforth(Sampler):
    """The two-step Adams-Bashforth method: second order, one evaluation a step.

    With h_i = σ_{i+1} - σ_i and ω = h_i / h_{i-1} the line through the last two velocities is
    integrated, ``x + h_i [(1 + ω/2) v_i - (ω/2) v_{i-1}]``; the first step is Euler's.
    """

    def weights(self, sigmas: Tensor, start: int) -> Tensor:
        """The weights; see `Sampler.weights`."""
        length = sigmas.double().diff()[start:]
        weights = torch.diag(length)
        half = length[1:].square() / length[:-1] / 2  # h_i ω / 2
        step = torch.arange(1, len(length), device="cpu")
        weights[step, step] += half
        weights[step, step - 1] -= half
        return weights
