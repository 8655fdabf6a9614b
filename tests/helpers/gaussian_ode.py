"""A flow whose data are normal: its velocity is linear, and its ODE solved in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.samplers import Sampler

MEAN, DEVIATION = 0.7, 0.4


def velocity(x: Tensor, sigma: Tensor) -> Tensor:
    """E[noise - data | x] for data from N(MEAN, DEVIATION²)."""
    spread = ((1 - sigma) * DEVIATION).square() + sigma.square()
    off = x - (1 - sigma) * MEAN
    return sigma / spread * off - MEAN - (1 - sigma) * DEVIATION**2 / spread * off


def shifted(steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels from 1 to 0 in unequal steps."""
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * even / (1 + (shift - 1) * even)


def final_error(sampler: Sampler | None, sigmas: Tensor, start: int = 0) -> float:
    """Largest distance to the solution, which keeps each point's place in the distribution."""
    place = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def solution(sigma: Tensor) -> Tensor:
        spread = ((1 - sigma) * DEVIATION).square() + sigma.square()
        return (1 - sigma) * MEAN + spread.sqrt() * place

    x, seen = solution(sigmas[start]), []
    weights = torch.diag(sigmas.diff()[start:])
    if sampler is not None:
        weights = sampler.weights(sigmas, start)
    for row, sigma in zip(weights, sigmas[start:-1], strict=True):
        seen.append(velocity(x, sigma))
        x = x + sum(weight * v for weight, v in zip(row, seen, strict=False))
    return float((x - solution(sigmas[-1])).abs().max())
