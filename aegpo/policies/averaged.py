"""BehaviorWeights: the lagging copy of the trained weights that draws the rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from aegpo.policies.base import Policy


class BehaviorWeights:
    """A decayed mean of the trainable tensors, beside those that the optimizer moves.

    It starts as a copy of the policy that it first meets. Only the trainable tensors are copied:
    with LoRA a few MB, with full fine-tuning a second model.
    """

    def __init__(self) -> None:
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
        weights = self._weights_of(policy)
        trained = {
            name: parameter for name, parameter in policy.named_parameters() if name in weights
        }
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
        weights = self._weights_of(policy)
        for name, trained in policy.trainable_state_dict().items():
            weights[name].mul_(decay).add_(trained, alpha=1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by the names of `Policy.trainable_state_dict`; empty before the first use."""
        return dict(self._weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights from a checkpoint; from an empty one, those of the policy at first use.

        Args:
            state: What `state_dict` returned.
        """
        self._weights = {name: weight.clone() for name, weight in state.items()}

    def _weights_of(self, policy: Policy) -> dict[str, Tensor]:
        """The weights on the policy's device, a copy of its own at first."""
        trained = policy.trainable_state_dict()
        if not self._weights:
            self._weights = {name: tensor.clone() for name, tensor in trained.items()}
        shapes = {name: weight.shape for name, weight in self._weights.items()}
        if shapes != {name: tensor.shape for name, tensor in trained.items()}:
            raise ValueError(
                "the checkpoint's behavior policy has other trainable tensors than this policy; "
                "build the policy with the arguments it was trained with"
            )
        for name, tensor in trained.items():
            self._weights[name] = self._weights[name].to(tensor.device)
        return self._weights
