"""One step of an SDE, and every step of a schedule against formulas written out in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aegpo.sde import SDE, GaussianStep

Reference = Callable[[Tensor, Tensor, float, float, float], tuple[Tensor, float]]
"""Latents, velocity, sigma, the next sigma and eta to mean and deviation, in float64."""


def shifted_sigmas(num_steps: int) -> Tensor:
    """SD3's schedule, float64: end-points shifted twice, shift 3."""
    last = 3 * 0.001 / (1 + 2 * 0.001)
    u = torch.linspace(1, last, num_steps, dtype=torch.float64)
    return torch.cat([3 * u / (1 + 2 * u), torch.zeros(1, dtype=torch.float64)])


def linear_sigmas(num_steps: int) -> Tensor:
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def one_step(sde: SDE, x: Tensor, v: Tensor, s: float, s_next: float, eta: float) -> GaussianStep:
    n = len(x)
    return sde.step(v, x, torch.full((n,), s), torch.full((n,), s_next), torch.full((n,), eta))


def assert_every_step_is(
    reference: Reference, sde: SDE, schedule: Callable[[int], Tensor], num_steps: int, eta: float
) -> None:
    """Mean and deviation at every step of a schedule are the reference's, to fp32's precision."""
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    # The reference sees the fp32 sigmas, as the code does: 1 - sigma magnifies their rounding.
    sigmas = schedule(num_steps).float().double()
    for s, s_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        step = one_step(sde, x.float(), v.float(), s, s_next, eta)
        mean, std = reference(x, v, s, s_next, eta)
        assert step.mean.dtype == step.std.dtype == torch.float32
        assert step.std.shape == (3, 1, 1, 1)
        torch.testing.assert_close(step.mean.double(), mean, rtol=1e-5, atol=3e-6)
        torch.testing.assert_close(
            step.std.double().flatten(), torch.full((3,), std).double(), rtol=1e-5, atol=0
        )
