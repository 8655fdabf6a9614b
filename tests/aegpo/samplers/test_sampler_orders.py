"""What samplers promise: their weights, and how fast they converge."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian_ode import final_error, shifted, velocity

from aegpo.samplers import AdamsBashforth, DPMSolver, Sampler, UniPC, sampler_name

ALL = [AdamsBashforth(), DPMSolver(), UniPC(), UniPC(order=3)]
each = pytest.mark.parametrize("sampler", ALL, ids=repr)


def test_adams_bashforth_by_hand() -> None:
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64)
    expected = [
        [-0.2, 0, 0],
        [0.3 * 1.5 / 2, -0.3 * (1 + 1.5 / 2), 0],
        [0, 0.5 * (5 / 3) / 2, -0.5 * (1 + (5 / 3) / 2)],
    ]
    expected_matrix = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(AdamsBashforth().weights(sigmas, 0), expected_matrix)
    later = [[-0.3, 0], [0.5 * (5 / 3) / 2, -0.5 * (1 + (5 / 3) / 2)]]  # as if step 0 had not been
    torch.testing.assert_close(
        AdamsBashforth().weights(sigmas, 1), torch.tensor(later, dtype=torch.float64)
    )


@each
@pytest.mark.parametrize("start", [0, 3, 6])
def test_a_constant_velocity_is_followed_exactly(sampler: Sampler, start: int) -> None:
    """A path's weights sum to the steps' lengths, and use no velocity of the future."""
    sigmas = shifted(7)
    weights = sampler.weights(sigmas, start)
    assert weights.shape == (7 - start, 7 - start) and weights.dtype == torch.float64
    torch.testing.assert_close(weights.sum(1), sigmas.diff()[start:], rtol=0, atol=2e-6)
    assert bool((weights.triu(1) == 0).all())
    assert weights[0, 0] == pytest.approx(float(sigmas[start + 1] - sigmas[start]), abs=2e-6)


@each
def test_weights_are_the_same_under_another_default_device(sampler: Sampler) -> None:
    sigmas = shifted(5)
    with torch.device("meta"):
        elsewhere = sampler.weights(sigmas, 1)
    assert torch.equal(elsewhere, sampler.weights(sigmas, 1))


def order(sampler: Sampler | None, start_share: float = 0.0) -> float:
    """Of convergence: how the error falls when steps are halved."""
    errors = [final_error(sampler, shifted(n), int(start_share * n)) for n in (24, 48)]
    return math.log2(errors[0] / errors[1])


def test_the_euler_step_is_of_first_order() -> None:
    assert order(None) == pytest.approx(1, abs=0.15)
    # The helper's velocity is that of its solution: two derivations of one thing.
    assert final_error(None, shifted(200)) < 0.05
    assert bool(velocity(torch.zeros(1), torch.ones(1)).isfinite())


@each
@pytest.mark.parametrize("start_share", [0.0, 0.25], ids=["from noise", "from the middle"])
def test_samplers_are_of_second_order_at_least(sampler: Sampler, start_share: float) -> None:
    assert order(sampler, start_share) > 1.8
    few, euler = (final_error(one, shifted(12)) for one in (sampler, None))
    assert few < euler


@each
def test_schedules_that_end_above_zero(sampler: Sampler) -> None:
    """As SD 1.5 has it; the last step is then as good as the others."""
    sigmas = shifted(24)[1:-3]
    assert final_error(sampler, sigmas) < final_error(None, sigmas) / 2


def test_other_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="UniPC: order=1; use 2 or 3"):
        UniPC(order=1)


def test_names() -> None:
    assert sampler_name(None) == "Euler"
    assert sampler_name(AdamsBashforth()) == "AdamsBashforth()"
    assert sampler_name(UniPC(order=3)) == "UniPC(order=3)"
