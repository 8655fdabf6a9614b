"""The update of a layer as two thin matrices, wherever it comes from and whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Factors:
    """What an adapter adds to the weight of a layer: scale · up · down.

    Args:
        down: (r, in), or (r, in, k, k) of a convolution.
        up: (out, r), or (out, r, 1, 1).
        scale: Alpha over rank.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rank r of the update."""
        return len(self.down)

    def update(self) -> Tensor:
        """The update itself, fp32, of the shape of the layer's weight."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return self.scale * product.reshape(len(self.up), *self.down.shape[1:])

    def of_rank(self, rank: int) -> Factors:
        """The same update written with a larger rank: the rest of both factors is zero.

        Args:
            rank: At least the own.

        Returns:
            The factors.
        """
        more = rank - self.rank
        down = torch.cat([self.down, self.down.new_zeros(more, *self.down.shape[1:])])
        rest = self.up.new_zeros(len(self.up), more, *self.up.shape[2:])
        return Factors(down, torch.cat([self.up, rest], dim=1), self.scale)


def adapted_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    """The layers that have an adapter.

    Args:
        model: Any network.
        adapter: Name of the adapter.

    Yields:
        Names, and peft's layers.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


def read_factors(model: nn.Module, adapter: str) -> dict[str, Factors]:
    """The updates that a network's adapter adds; they share memory with it.

    Args:
        model: The network.
        adapter: Name of the adapter.

    Returns:
        Factors by the name of the layer.
    """
    return {
        name: Factors(
            layer.lora_A[adapter].weight.detach(),
            layer.lora_B[adapter].weight.detach(),
            float(layer.scaling[adapter]),
        )
        for name, layer in adapted_layers(model, adapter)
    }


def summed(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> dict[str, Factors]:
    """One adapter that adds what two add, exactly: its factors are theirs side by side.

    All layers get one rank, which any program reads; where a layer needs less, the rest is zero.

    Args:
        first: Updates by layer, on any device.
        second: Others; layers may differ.

    Returns:
        fp32 factors on the CPU, of scale 1, for every layer of the two.
    """
    layers = [*first, *(name for name in second if name not in first)]
    found = {name: [part[name] for part in (first, second) if name in part] for name in layers}
    joined = {
        name: Factors(
            torch.cat([part.down.float().cpu() for part in parts]),
            torch.cat([part.scale * part.up.float().cpu() for part in parts], dim=1),
            1.0,
        )
        for name, parts in found.items()
    }
    rank = max(part.rank for part in joined.values())
    return {name: part.of_rank(rank) for name, part in joined.items()}


def of_one_shape(factors: Mapping[str, Factors]) -> tuple[dict[str, Factors], int, int]:
    """The same updates with one rank and one alpha, as a policy's adapters have them.

    Args:
        factors: Updates by layer, at least one.

    Returns:
        Factors whose rank may still be below the rank returned; that rank and alpha. Nothing is
        rounded where all layers had one scale and alpha is a whole number.
    """
    rank = max(part.rank for part in factors.values())
    scales = {part.scale for part in factors.values()}
    alpha = round(rank * max(scales))
    if scales == {alpha / rank}:
        return dict(factors), rank, alpha
    own = {name: Factors(part.down, part.scale * part.up, 1.0) for name, part in factors.items()}
    return own, rank, rank


@torch.no_grad()
def start_from(model: nn.Module, adapter: str, factors: Mapping[str, Factors]) -> None:
    """Give a network's adapters the updates of others.

    Where an update has a smaller rank than the adapter, the rest of the down-projection stays as it
    was drawn and that of the up-projection zero: it adds nothing yet, and can learn.

    Args:
        model: The network with new adapters, changed in place.
        adapter: Their name.
        factors: Updates by layer, of the adapter's scale; the adapters of others stay new.
    """
    for name, layer in adapted_layers(model, adapter):
        given = factors.get(name)
        if given is None:
            continue
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        down[: given.rank].copy_(given.down)
        up[:, : given.rank].copy_(given.up)


@torch.no_grad()
def lay_on(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Add updates to the weights of a network; sums are fp32 and rounded once.

    Args:
        model: Changed in place; nothing is added on the meta device.
        factors: Updates by layer.
    """
    for name, part in factors.items():
        weight = base_weight(model, name)
        if not weight.is_meta:
            weight.copy_(weight.float() + part.update().to(weight.device))


def base_weight(model: nn.Module, name: str) -> Tensor:
    """The weight of a layer, below its adapter if it has one.

    Args:
        model: The network.
        name: Of the layer.

    Returns:
        The weight itself.
    """
    layer = model.get_submodule(name)
    base: Any = getattr(layer, "base_layer", layer)
    weight: Tensor = base.weight
    return weight


def peft_names(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Factors under the names that peft and diffusers exchange, scales left out.

    Args:
        factors: Updates by layer.

    Returns:
        Two tensors for each layer, contiguous.
    """
    named: dict[str, Tensor] = {}
    for name, part in factors.items():
        named[f"{name}.lora_A.weight"] = part.down.contiguous()
        named[f"{name}.lora_B.weight"] = part.up.contiguous()
    return named


def lora_config(factors: Mapping[str, Factors]) -> LoraConfig:
    """What peft has to know of factors that all have one rank and one scale.

    Args:
        factors: Updates by layer.

    Returns:
        The configuration.
    """
    part = next(iter(factors.values()))
    return LoraConfig(r=part.rank, lora_alpha=part.scale * part.rank, target_modules=list(factors))


def blank_copy(model: ModelMixin) -> ModelMixin:
    """The same network without weights, on the meta device.

    Args:
        model: The network.

    Returns:
        The copy, without adapters.
    """
    with torch.device("meta"):
        copy: ModelMixin = type(model).from_config(model.config)
    return copy
