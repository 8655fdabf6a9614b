"""The trained tensors of a module: what a checkpoint holds, and how they are put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aegpo.policies.fsdp.sharding import shard_like


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The trainable tensors by name; they share memory with the module.

    Args:
        module: Any module.

    Returns:
        One detached tensor for each parameter that requires a gradient.
    """
    return {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def copy_trainable_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Takes over what `trainable_tensors` returned.

    Args:
        module: A module of the same make.
        state: A tensor of the right shape for every trainable parameter, and no other; whole ones
            also where the module's are spread over ranks.

    Raises:
        ValueError: If names or shapes differ; the module is then unchanged.
    """
    own = trainable_tensors(module)
    require_fit(own, state)
    for name, tensor in own.items():
        tensor.copy_(shard_like(state[name], tensor))


def require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises unless saved tensors are those of a module.

    Args:
        own: What `trainable_tensors` says of the module.
        state: The saved ones.

    Raises:
        ValueError: If names or shapes differ.
    """
    wrong = [
        *(f"{name} is missing" for name in own.keys() - state.keys()),
        *(f"{name} is not trainable here" for name in state.keys() - own.keys()),
        *(
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        ),
    ]
    if wrong:
        raise ValueError(
            f"the saved weights do not fit this policy in {len(wrong)} tensors, first: "
            f"{min(wrong)}; build the policy with the arguments it was trained with"
        )
