"""AveragedWeights: weights that lag behind the trained ones, or come from an earlier checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from aegpo.policies.base import Policy
from aegpo.policies.fsdp.sharding import local_part, shard_like
from aegpo.policies.trainable import require_fit


def weighted_sum(average: Tensor, trained: Tensor, decay: float) -> None:
    """The average becomes decay · average + (1 - decay) · trained.

    Args:
        average: Changed in place.
        trained: The trained tensor, of the same shape.
        decay: In [0, 1).
    """
    average.mul_(decay).add_(trained, alpha=1 - decay)


def lerp(average: Tensor, trained: Tensor, decay: float) -> None:
    """The same number as `weighted_sum`, rounded as `torch.lerp` rounds.

    Args:
        average: Changed in place.
        trained: The trained tensor, of the same shape.
        decay: In [0, 1).
    """
    average.lerp_(trained, 1 - decay)


class AveragedWeights:
    """A second set of the trainable tensors, beside those that the optimizer moves.

    It starts as a copy of the policy that it first meets, or as the tensors that it was given. Only
    the trainable tensors are copied: with LoRA a few MB, with full fine-tuning a second model. By
    which decay it follows is up to who calls `follow`.

    Args:
        move: How one tensor follows; `weighted_sum` and `lerp` differ in the last bit.
    """

    def __init__(self, move: Callable[[Tensor, Tensor, float], None] = weighted_sum) -> None:
        self._move = move
        self._weights: dict[str, Tensor] = {}

    @contextmanager
    def active(self, policy: Policy) -> Iterator[None]:
        """Inside this context the policy predicts with these weights.

        Tensors change places and nothing is copied, so what was trained is back afterwards bit for
        bit, and no optimizer notices. A backward pass has to run outside of the context.

        Args:
            policy: The policy whose weights they are.

        Yields:
            Nothing.
        """
        weights = self.of(policy)
        trained = {
            name: parameter for name, parameter in policy.named_parameters() if name in weights
        }
        if policy.lockstep is not None:
            pairs = [(parameter, weights[name]) for name, parameter in trained.items()]
            with policy.lockstep.weights(self, pairs):
                yield
            return
        own = {name: parameter.data for name, parameter in trained.items()}
        for name, parameter in trained.items():
            parameter.data = weights[name]
        try:
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = own[name]

    @torch.no_grad()
    def follow(self, policy: Policy, decay: float) -> None:
        """Move towards the trained weights: decay · own + (1 - decay) · trained.

        Args:
            policy: The policy as it was trained so far.
            decay: In [0, 1); 0 takes over the trained weights.
        """
        weights = self.of(policy)
        for name, trained in policy.trainable_state_dict().items():
            self._move(local_part(weights[name]), local_part(trained), decay)

    def of(self, policy: Policy) -> dict[str, Tensor]:
        """The weights on the policy's device, at first a copy of its own.

        Args:
            policy: The policy whose weights they are.

        Returns:
            The very tensors that `follow` moves, by the names of `Policy.trainable_state_dict`.

        Raises:
            ValueError: If they are weights of another policy.
        """
        trained = policy.trainable_state_dict()
        if not self._weights:
            self._weights = {name: tensor.clone() for name, tensor in trained.items()}
        require_fit(trained, self._weights)
        for name, tensor in trained.items():
            self._weights[name] = shard_like(self._weights[name], tensor).to(tensor.device)
        return self._weights

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by the names of `Policy.trainable_state_dict`; empty before the first use."""
        return dict(self._weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over copies of tensors; from an empty state, those of the policy at first use.

        Args:
            state: What `state_dict` or `Policy.trainable_state_dict` returned.
        """
        self._weights = {name: weight.clone() for name, weight in state.items()}
