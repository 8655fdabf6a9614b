"""Steps by the entropy of the noise that the SDE injects there."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from chosen_steps import NOISE, sizes, splits

from aegpo.exploration import NoiseEntropy, StepSelector
from aegpo.sde import CPS, DanceSDE


def test_the_noise_of_early_steps_has_the_highest_entropy() -> None:
    # sqrt(2 pi e) std by hand at T = 16, shift 3, a = 0.7; at step 0 std is exactly 0.7.
    selector = NoiseEntropy(top_k=3, eta=0.7, shift=3.0)
    expected = torch.tensor([4.1327 * 0.7, 2.99, 2.14, 1.76, 1.54, 1.39]).log()
    torch.testing.assert_close(selector.curve(16)[:6], expected, atol=4e-3, rtol=0)
    plan = selector(None, NOISE, torch.arange(2), 16)
    assert plan.stochastic.nonzero()[:, 1].tolist() == [0, 1, 2] * 2
    tree = NoiseEntropy(top_k=3, eta=0.7, shift=3.0, branching=2)(None, NOISE, torch.arange(1), 16)
    assert splits(tree.fit(sizes(2))) == [[1]]  # 2.99 is the highest
    # Constant noise on equal steps: all alike, so the earliest.
    flat = NoiseEntropy(top_k=2, eta=0.3, sde=DanceSDE()).curve(4)
    expected = torch.full((4,), 0.5 * math.log(2 * math.pi * math.e * 0.3**2 * 0.25))
    torch.testing.assert_close(flat, expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NoiseEntropy(top_k=0), "at least 1"),
        (lambda: NoiseEntropy(shift=0.0), "shift=0.0"),
        (lambda: NoiseEntropy(sde=CPS(), eta=2.0).validate(9), "CPS accepts eta"),
    ],
)
def test_arguments_are_refused(build: Callable[[], StepSelector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
