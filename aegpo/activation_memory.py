"""Memory that a network's forward pass takes, measured on the meta device, where it takes none.

autograd says through its hooks which tensors it would keep for the backward pass. Attention counts
as a fused kernel, which keeps queries, keys, values and its output but no scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
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


def packs_latents(denoiser: nn.Module) -> bool:
    """Whether a denoiser takes 2 x 2 patches as tokens, and where they lie, as FLUX does."""
    return "img_ids" in inspect.signature(denoiser.forward).parameters


def denoiser_inputs(
    denoiser: nn.Module, rows: int, latent_shape: tuple[int, int, int], num_text: int
) -> dict[str, Any] | None:
    """Make inputs of a denoiser by the names of its `forward`.

    Args:
        denoiser: A diffusers network on the meta device.
        rows: Rows of the batch.
        latent_shape: Shape of one latent, (C, H, W).
        num_text: Text tokens.

    Returns:
        Keyword arguments on the meta device; None if it needs one that is not known here.
    """
    config: Any = denoiser.config
    parameters = inspect.signature(denoiser.forward).parameters
    width = config.get("joint_attention_dim") or config.get("cross_attention_dim")
    dtype = next(p.dtype for p in denoiser.parameters())
    channels, height, side = latent_shape
    packed = packs_latents(denoiser)
    tokens = height * side // 4
    shapes: dict[str, Any] = {
        "hidden_states": (rows, tokens, 4 * channels) if packed else (rows, *latent_shape),
        "sample": (rows, *latent_shape),
        "timestep": (rows,),
        "encoder_hidden_states": (rows, num_text, width),
        "pooled_projections": (rows, config.get("pooled_projection_dim")),
        "img_ids": (tokens, 3),
        "txt_ids": (num_text, 3),
    }
    if config.get("guidance_embeds"):
        shapes["guidance"] = (rows,)
    inputs: dict[str, Any] = {"return_dict": False}
    for name, parameter in parameters.items():
        if name in shapes and None not in shapes[name]:
            inputs[name] = torch.empty(shapes[name], dtype=dtype, device="meta")
        elif parameter.default is inspect.Parameter.empty:
            return None
    if config.get("addition_embed_type") == "text_time":  # SDXL
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(rows, pooled, dtype=dtype, device="meta"),
            "time_ids": torch.empty(rows, 6, dtype=dtype, device="meta"),
        }
    return inputs


def saved_bytes(network: nn.Module, inputs: dict[str, Any]) -> int:
    """Bytes that autograd keeps of one forward pass, parameters not among them.

    Args:
        network: A network on the meta device.
        inputs: Keyword arguments of its `forward`.

    Returns:
        Their sum; a tensor that is kept twice counts once.
    """
    parameters = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses apart

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    training = network.training
    network.train()  # gradient checkpointing is off in evaluation mode
    try:
        with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            network(**inputs)
    finally:
        network.train(training)
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
def transient_bytes(network: nn.Module, call: str, tensor: Tensor) -> int:
    """Bytes that a forward pass without gradient needs at its widest layer.

    A layer's input, its output and a residual of the input's size lie side by side.

    Args:
        network: A network on the meta device.
        call: Name of the method to run.
        tensor: Its argument, on the meta device.

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
            getattr(network, call)(tensor)
    finally:
        for handle in handles:
            handle.remove()
    return widest


@contextmanager
def _fused_attention() -> Iterator[None]:
    original = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = _FusedAttention.apply(query, key, value)
        return output

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
