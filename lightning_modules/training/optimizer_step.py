"""The optimizer step of manual optimization, where ranks did different numbers of backwards."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from aegpo.distributed import all_reduce_gradients, all_reduce_max


def no_gradient_sync(strategy: Any) -> AbstractContextManager[Any]:
    """Keep DDP from reducing after each backward: ranks may do different numbers of them.

    Args:
        strategy: The trainer's strategy.

    Returns:
        The context for the backward passes.
    """
    block = getattr(strategy, "block_backward_sync", None)
    return block() if block is not None else nullcontext()


class Step(NamedTuple):
    """What became of an optimizer step.

    Attributes:
        norm: Norm of the gradient before clipping.
        taken: Whether it was taken: only if the losses of all ranks and the norm are finite.
    """

    norm: float
    taken: bool


def optimizer_step(
    optimizer: Any, parameters: list[nn.Parameter], max_grad_norm: float, losses: Tensor
) -> Step:
    """Sum the gradients of all ranks, clip them, and step unless something is not finite.

    Every rank calls it, and all of them step or none does.

    Args:
        optimizer: The optimizer, as Lightning wraps it; its gradients are zero afterwards.
        parameters: The parameters that it moves.
        max_grad_norm: Gradients are scaled down to this norm.
        losses: This rank's losses whose gradient it is, shape (n,); n may be 0.

    Returns:
        What became of it.
    """
    spread = any(isinstance(parameter, DTensor) for parameter in parameters)
    if not spread:  # else every backward pass has summed its own
        all_reduce_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    # A loss may be infinite where its gradient is not: behind a clamp, for instance. Both are read
    # at once, since the host waits for the device's work at each reading.
    length, finite = map(float, torch.stack([norm, losses.isfinite().all().to(norm)]).cpu())
    broken = not math.isfinite(length) or not finite
    taken = all_reduce_max(float(broken), losses.device) == 0
    if taken:
        optimizer.step()
    optimizer.zero_grad()
    return Step(length, taken)
