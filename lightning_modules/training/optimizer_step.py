"""The optimizer step of manual optimization, where ranks did different numbers of backwards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from aegpo.distributed import all_reduce_gradients


def no_gradient_sync(strategy: Any) -> AbstractContextManager[Any]:
    """Keep DDP from reducing after each backward: ranks may do different numbers of them.

    Args:
        strategy: The trainer's strategy.

    Returns:
        The context for the backward passes.
    """
    block = getattr(strategy, "block_backward_sync", None)
    return block() if block is not None else nullcontext()


def optimizer_step(optimizer: Any, parameters: list[nn.Parameter], max_grad_norm: float) -> float:
    """Sum the gradients of all ranks, clip them, and step unless they are not finite.

    Args:
        optimizer: The optimizer, as Lightning wraps it; its gradients are zero afterwards.
        parameters: The parameters that it moves.
        max_grad_norm: Gradients are scaled down to this norm.

    Returns:
        The norm before clipping.
    """
    all_reduce_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return float(norm)
