"""Adapters of linear layers, added where the layer writes its output."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn


def add_in_place(model: nn.Module, adapter: str) -> None:
    """Let the adapted linear layers of a model add their adapter in one matrix product.

    Peft writes the adapter's output, its multiple by the scale and the sum, each as wide as the
    layer. Here the scale is applied where the adapter is narrow, the sum takes the place of the
    layer's output (in fp32 within the matrix product), and without gradient inputs are taken to
    half precision once for both. Outputs and gradients are the same to the last bit, since a scale
    that is a power of two, as the usual 2 and 1, rounds nothing. Layers with another scale are left
    to peft, as are quantized ones.

    Args:
        model: Changed in place.
        adapter: Name of its only adapter.
    """
    for layer in model.modules():
        # Subclasses compute otherwise.
        if type(layer) is LoraLinear and math.frexp(_scale(layer, adapter))[0] == 0.5:
            layer.__class__ = AdaptedLinear


class AdaptedLinear(LoraLinear):  # type: ignore[misc]  # peft has no types
    """Peft's layer with one adapter, without dropout, which adds its output in one product."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output and the adapter's, in the layer's dtype.

        Args:
            x: Inputs, shape (..., in).
            *args: Peft's own; with any of them peft computes.
            **kwargs: Likewise.

        Returns:
            Shape (..., out).
        """
        output: Tensor
        if args or kwargs or self._disable_adapters or self.merged:
            output = super().forward(x, *args, **kwargs)
            return output
        (down,), (up,), (scale,) = (
            part.values() for part in (self.lora_A, self.lora_B, self.scaling)
        )
        half = _autocast_dtype(x)
        if half is None and (x.dtype != up.weight.dtype or x.dtype != self.weight.dtype):
            output = super().forward(x)
            return output
        # A gradient is summed in the dtype of the inputs: they stay as they are where there is one.
        inputs = x if half is None or torch.is_grad_enabled() else x.to(half)
        output, inner = self.base_layer(inputs), down(inputs)
        if output.dtype != torch.float32:
            added: Tensor = up(inner * scale)
            return output + added if torch.is_grad_enabled() else output.add_(added)
        rows, inner = output.flatten(0, -2), inner.flatten(0, -2)
        if torch.is_grad_enabled():
            return torch.addmm(rows, inner, up.weight.t(), alpha=scale).view(output.shape)
        rows.addmm_(inner, up.weight.t(), alpha=scale)
        return output


def _scale(layer: Any, adapter: str) -> float:
    return float(layer.scaling[adapter])


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta knows no autocast
        return None
    return torch.get_autocast_dtype(device)
