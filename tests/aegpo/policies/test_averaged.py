"""Lagging weights: in place while they are active, and gone without a trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.policies.averaged import AveragedWeights, lerp, weighted_sum


def test_the_first_policy_is_copied_and_not_followed_by_itself() -> None:
    policy, weights = ToyPolicy(), AveragedWeights()
    with weights.active(policy):
        assert float(policy.speed) == 0.5
    policy.speed.data.fill_(2.0)
    with weights.active(policy):
        assert float(policy.speed) == 0.5
        with weights.active(policy):  # nested
            assert float(policy.speed) == 0.5
        assert float(policy.speed) == 0.5
    assert float(policy.speed) == 2.0


def test_an_exception_leaves_the_trained_weights() -> None:
    policy, weights = ToyPolicy(), AveragedWeights()
    with weights.active(policy):
        pass
    policy.speed.data.fill_(2.0)
    storage = policy.speed.data_ptr()
    with pytest.raises(RuntimeError), weights.active(policy):
        raise RuntimeError
    assert float(policy.speed) == 2.0
    assert policy.speed.data_ptr() == storage  # the very tensor that the optimizer knows


def test_a_gradient_taken_around_it_is_that_of_the_trained_weights() -> None:
    policy, weights = ToyPolicy(), AveragedWeights()
    with weights.active(policy):
        pass
    policy.speed.data.fill_(2.0)
    loss = policy.speed**2
    with torch.no_grad(), weights.active(policy):
        assert float(policy.speed**2) == 0.25
    loss.backward()
    assert float(policy.speed.grad) == 4.0


def test_weights_of_another_policy_are_refused() -> None:
    weights = AveragedWeights()
    weights.load_state_dict({"speed": torch.ones(2)})
    with (
        pytest.raises(ValueError, match=r"do not fit.*speed has shape \(2,\)"),
        weights.active(ToyPolicy()),
    ):
        pass


def test_a_state_is_a_copy() -> None:
    policy, weights = ToyPolicy(), AveragedWeights()
    weights.load_state_dict({})
    with weights.active(policy):
        assert float(policy.speed) == 0.5  # as at first use
    restored = AveragedWeights()
    restored.load_state_dict(weights.state_dict())
    policy.speed.data.fill_(2.0)
    weights.follow(policy, 0.0)
    with restored.active(policy):
        assert float(policy.speed) == 0.5


@pytest.mark.parametrize("move", [lerp, weighted_sum])
def test_following_is_a_decayed_mean(move: Callable[[Tensor, Tensor, float], None]) -> None:
    policy, weights = ToyPolicy(), AveragedWeights(move)
    kept = weights.of(policy)
    policy.speed.data.fill_(2.0)
    weights.follow(policy, 0.25)
    assert float(kept["speed"]) == 0.25 * 0.5 + 0.75 * 2.0
    weights.follow(policy, 0.5)
    assert float(kept["speed"]) == 0.5 * 1.625 + 0.5 * 2.0
    assert float(policy.speed) == 2.0
