"""Collectives that are the identity on one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """Return (world size, rank); (1, 0) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def own_rows(count: int) -> Tensor:
    """Rows that are this rank's when they are dealt in turn; with fewer than ranks some have none.

    Args:
        count: How many rows there are.

    Returns:
        Row numbers rank, rank + size, … below `count`, shape (n,) int64, on the CPU.
    """
    size, rank = world()
    return torch.arange(count, device="cpu")[rank::size]


def all_gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Concatenate every rank's rows in rank order; ranks may hold different numbers of them.

    Args:
        rows: This rank's rows, shape (n, ...); the trailing shape and dtype are equal on all
            ranks.

    Returns:
        All rows, shape (sum of n, ...), and where this rank's own rows lie among them.
    """
    size, rank = world()
    if size == 1:
        return rows, slice(0, len(rows))
    from torchmetrics.utilities.distributed import (
        gather_all_tensors,
    )  # seconds; one rank needs none

    # nccl carries nothing that lies on the CPU.
    carried = rows.cuda() if dist.get_backend() == "nccl" else rows
    parts = [part.to(rows.device) for part in gather_all_tensors(carried)]
    start = sum(len(part) for part in parts[:rank])
    return torch.cat(parts), slice(start, start + len(rows))


def all_reduce_sum(value: float, device: torch.device) -> float:
    """Sum a number over all ranks."""
    if world()[0] == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def all_reduce_max(value: float, device: torch.device) -> float:
    """Take the largest of a number over all ranks."""
    if world()[0] == 1:
        return value
    largest = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def all_reduce_rows(rows: Tensor) -> Tensor:
    """Sum a tensor over all ranks.

    Args:
        rows: Of the same shape on every rank; changed in place.

    Returns:
        The sum.
    """
    if world()[0] > 1:
        dist.all_reduce(rows)
    return rows


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold parts of a module's weights, so that its forward is a collective."""
    if world()[0] == 1:
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def all_reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over all ranks in one collective.

    Every rank calls it once per optimizer step, however many backward passes it did; a parameter
    that got no gradient here counts as zero. That is what lets ranks hold groups of different
    sizes without a deadlock.

    Args:
        parameters: The trained parameters, in the same order on every rank.
    """
    if world()[0] == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
