"""Flow-SDE and Dance-SDE against METHOD's formulas and the published numbers."""

from __future__ import annotations

import math

import pytest
import torch
from sde_steps import assert_every_step_is, linear_sigmas, shifted_sigmas
from torch import Tensor

from aegpo.sde import DanceSDE, FlowSDE


def flow_reference(x: Tensor, v: Tensor, s: float, s_next: float, a: float) -> tuple[Tensor, float]:
    dt = s_next - s
    std_t = a * math.sqrt(s / (1 - (s_next if s == 1 else s)))
    mean = x * (1 + std_t**2 / (2 * s) * dt) + v * (1 + std_t**2 * (1 - s) / (2 * s)) * dt
    return mean, std_t * math.sqrt(-dt)


def dance_reference(
    x: Tensor, v: Tensor, s: float, s_next: float, a: float
) -> tuple[Tensor, float]:
    dt = s_next - s
    data = x - s * v
    score = -(x - (1 - s) * data) / s**2
    return x + dt * v + (-0.5 * a**2 * score) * dt, a * math.sqrt(-dt)


REFERENCES = [(FlowSDE, flow_reference), (DanceSDE, dance_reference)]


@pytest.mark.parametrize("schedule", [shifted_sigmas, linear_sigmas])
@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(("kind", "reference"), REFERENCES)
def test_every_step_equals_the_float64_reference(kind, reference, eta, num_steps, schedule):
    assert_every_step_is(reference, kind(), schedule, num_steps, eta)


def test_flow_golden_table():
    """Flow-SDE, SD3 schedule of 10 steps, eta 0.7: std, and the factors of x and v in the mean."""
    table = [
        (0.70000, 0.75500, -0.03987),
        (0.74296, 0.71254, -0.05824),
        (0.53615, 0.84263, -0.06929),
        (0.44590, 0.88409, -0.08382),
        (0.39179, 0.90289, -0.10345),
        (0.35280, 0.91201, -0.13088),
        (0.31907, 0.91546, -0.17091),
        (0.28201, 0.91446, -0.23260),
        (0.22536, 0.90867, -0.33505),
        (0.00628, 0.99779, -0.01112),
    ]
    sigmas = shifted_sigmas(10).float()
    got = FlowSDE().coefficients(sigmas[:-1], sigmas[1:], torch.full((10,), 0.7))
    expected = torch.tensor(table)
    torch.testing.assert_close(got.std, expected[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.latents, expected[:, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.prediction, expected[:, 2], rtol=0, atol=1e-5)


def test_dance_golden_deviations():
    """DanceGRPO's own schedule, 16 steps, shift 3, eta 0.3."""
    u = torch.linspace(1, 0, 17, dtype=torch.float64)
    sigmas = (3 * u / (1 + 2 * u)).float()
    got = DanceSDE().coefficients(sigmas[:-1], sigmas[1:], torch.full((16,), 0.3))
    expected = (
        ".0442 .0462 .0484 .0507 .0533 .0562 .0594 .0630 "
        ".0671 .0717 .0770 .0832 .0905 .0991 .1095 .1225"
    )
    expected = torch.tensor([float(std) for std in expected.split()])
    torch.testing.assert_close(got.std, expected, rtol=0, atol=6e-5)
