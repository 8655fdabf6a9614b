"""A denoiser spread over ranks by torch's FSDP2, and tensors in and out of that form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard_module(module: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a diffusers model over all ranks: each holds an equal part of every tensor.

    Its repeated blocks are gathered one by one when they run, what is left around them at once.
    Frozen and trained tensors keep their dtypes, side by side in a block, and are gathered in
    them. Gradients are summed over the ranks during the backward pass, not averaged: losses are
    divided by the total over all ranks already.

    Args:
        module: Changed in place; afterwards its parameters are DTensors on the mesh's device.
        mesh: All ranks, in one dimension.

    Raises:
        ValueError: If torch is too old to sum.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(
            f"trainer.strategy=fsdp2 needs a newer torch than {torch.__version__}, one whose "
            "FSDPModule has set_force_sum_reduction_for_comms; upgrade torch, or use ddp"
        )
    for part in gathered_parts(module):
        # Also the outermost part is given up after a forward: weights may change before the next.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def gathered_parts(module: nn.Module) -> list[nn.Module]:
    """The parts of a diffusers model whose weights are gathered together.

    Args:
        module: A denoiser.

    Returns:
        Its repeated blocks, a block inside a block before the outer one, which then stands for what
        is left of it; and the model itself for what is left around them.
    """
    kinds = {*(getattr(module, "_no_split_modules", None) or [])}
    kinds |= {*(getattr(module, "_repeated_blocks", None) or [])}
    blocks = [
        part
        for part in module.modules()
        if part is not module
        and type(part).__name__ in kinds
        and any(True for _ in part.parameters())
    ]
    return [*reversed(blocks), module]


def gathered_bytes(module: nn.Module) -> int:
    """Most bytes of whole weights and gradients that a rank holds while a spread model runs.

    Args:
        module: A denoiser, spread or not.

    Returns:
        What is around the blocks, and two of the largest block: the one that runs and the next one,
        which is gathered meanwhile; of the largest also the gradients.
    """
    taken: set[nn.Parameter] = set()
    sizes = []
    for part in gathered_parts(module):
        own = [one for one in part.parameters() if one not in taken]
        taken.update(own)
        weights = sum(one.numel() * one.element_size() for one in own)
        sizes.append((weights, weights + sum(4 * one.numel() for one in own if one.requires_grad)))
    *blocks, around = sizes
    largest = max(blocks, default=(0, 0))
    return around[1] + largest[0] + largest[1]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Take this rank's part of a tensor that every rank holds wholly, without communication.

    Args:
        tensor: The whole tensor, or one that is spread already.
        like: A tensor of the same shape.

    Returns:
        A copy, spread as `like` is; the tensor itself where `like` is whole or both are spread.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    spread: Tensor = distribute_tensor(
        tensor.to(like.device, copy=True), like.device_mesh, like.placements, src_data_rank=None
    )
    return spread


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def exchange(one: Tensor, other: Tensor) -> None:
    """Let two spread tensors exchange their contents on this rank, bit for bit.

    FSDP gathers from memory of its own, so a parameter cannot be pointed at another tensor.

    Args:
        one: Changed in place.
        other: Changed in place; spread alike.
    """
    own, others = local_part(one.detach()), local_part(other.detach())
    kept = own.clone()
    own.copy_(others)
    others.copy_(kept)


def gathered(value: Any, keep: bool) -> Any:
    """Collect the spread tensors in nested containers; every rank has to call it.

    Args:
        value: A tensor, a mapping, a list, a tuple, or anything else.
        keep: Whether this rank wants them; it then gets them on the CPU, else None in their place.

    Returns:
        The same with whole tensors; containers without a spread tensor are copied.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, Mapping):
        return {name: gathered(one, keep) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gathered(one, keep) for one in value)
    return value
