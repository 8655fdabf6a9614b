"""Memory that a network's forward pass takes, measured on the meta device, where it takes none.

autograd says through its hooks which tensors it would keep for the backward pass. Attention counts
as a fused kernel, which keeps queries, keys, values and its output but no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps; the meta device would run the unfused one."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("only what a forward pass keeps is measured")


AttentionShape = tuple[int, int, int]
"""Heads, queries and keys of one call of an attention kernel."""


def saved_bytes(network: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that autograd keeps of one forward pass, parameters not among them.

    Args:
        network: A network on the meta device.
        run: Runs it once.

    Returns:
        Their sum; a tensor that is kept twice counts once.
    """
    training = network.training
    network.train()  # gradient checkpointing is off in evaluation mode
    try:
        with _fused_attention():
            return kept_bytes(network, run)
    finally:
        network.train(training)


def kept_bytes(network: nn.Module, run: Callable[[], object]) -> int:
    """The same of a network as it is, on any device and with its own attention.

    Args:
        network: The network.
        run: Runs it once.

    Returns:
        Their sum, parameters not among them.
    """
    parameters = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses apart

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def num_blocks(network: nn.Module) -> int:
    """Blocks of a network: the modules in its own lists of them, at least 1.

    Args:
        network: The network.

    Returns:
        Number of blocks.
    """
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    return max(1, sum(map(len, lists)))


@torch.no_grad()
def attention_shapes(run: Callable[[], object]) -> set[AttentionShape]:
    """What a forward pass attends to, softmax attention only.

    Args:
        run: Runs a network on the meta device once.

    Returns:
        The different shapes of its attention.
    """
    with _fused_attention() as shapes:
        run()
    return shapes


@torch.no_grad()
def transient_bytes(network: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that a forward pass without gradient needs at its widest layer.

    A layer's input, its output and a residual of the input's size lie side by side.

    Args:
        network: A network on the meta device.
        run: Runs it once.

    Returns:
        The largest sum over all layers.
    """
    widest = 0

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal widest
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            widest = max(widest, 2 * inputs[0].nbytes + output.nbytes)

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        with _fused_attention():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return widest


@contextmanager
def _fused_attention() -> Iterator[set[AttentionShape]]:
    original = F.scaled_dot_product_attention
    shapes: set[AttentionShape] = set()

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        shapes.add((query.shape[1], query.shape[2], key.shape[2]))
        output: Tensor = _FusedAttention.apply(query, key, value)
        return output

    F.scaled_dot_product_attention = fused
    try:
        yield shapes
    finally:
        F.scaled_dot_product_attention = original
