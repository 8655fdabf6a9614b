"""Adapters in the layouts of other programs, which diffusers reads back.

diffusers keeps alpha beside the tensors, where other programs do not look: they would apply our
adapters at half their strength, since alpha is twice the rank by default. Here it is an own tensor
for each layer (kohya), or part of the up-projection (ComfyUI's transformers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from diffusers.utils import convert_state_dict_to_kohya
from torch import Tensor, nn

from aegpo.policies.adapters.factors import Factors, base_weight, peft_names

Layout = Literal["diffusers", "kohya", "comfyui", "merged"]
"""As what a policy is written: adapters in one of three layouts, or a whole pipeline."""


class Form(NamedTuple):
    """The form of what is written.

    Args:
        layout: As what.
        name: What a file for other programs is called, without suffix.
    """

    layout: Layout
    name: str


DIFFUSERS = Form("diffusers", "")
"""`save_pretrained`, under the name that diffusers gives."""

WriteLayout = Callable[[Mapping[str, Factors], nn.Module], dict[str, Tensor]]
"""From updates by layer, and the network that they belong to, to the tensors of a file."""


def scale_inside(factors: Mapping[str, Factors], network: nn.Module) -> dict[str, Tensor]:
    """Diffusers' names, with a scale of 1: what ComfyUI reads for transformers.

    Args:
        factors: Updates by layer.
        network: Not used.

    Returns:
        Tensors by name.
    """
    del network
    scaled = {name: Factors(part.down, part.scale * part.up, 1.0) for name, part in factors.items()}
    return {f"transformer.{name}": tensor for name, tensor in peft_names(scaled).items()}


def kohya(factors: Mapping[str, Factors], network: nn.Module) -> dict[str, Tensor]:
    """Kohya's names, made of the network's own: for UNets, and where the names are the original's.

    Args:
        factors: Updates by layer.
        network: Not used.

    Returns:
        Tensors by name, among them an alpha for each layer.
    """
    del network
    prefixed = {f"unet.{name}": tensor for name, tensor in peft_names(factors).items()}
    named: dict[str, Tensor] = convert_state_dict_to_kohya(prefixed)
    for name, part in factors.items():  # the library takes the rank for alpha
        alpha = f"lora_unet_{name.replace('.', '_')}.alpha"
        assert alpha in named, f"diffusers calls the alpha of {name} otherwise"
        named[alpha] = torch.tensor(part.scale * part.rank, device="cpu")
    return named


def kohya_flux(factors: Mapping[str, Factors], network: nn.Module) -> dict[str, Tensor]:
    """Kohya's names for FLUX: those of the original network, which has fused projections.

    Args:
        factors: Updates by layer.
        network: The transformer, for the widths of layers without an adapter.

    Returns:
        Tensors by name, among them an alpha for each layer.

    Raises:
        ValueError: If a layer has no name there.
    """
    return kohya(_fused(factors, network), network)


_SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
_BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "double_blocks.{}.": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj", "ff.linear_in"),
        "img_mlp.2": ("ff.net.2", "ff.linear_out"),
        "txt_mlp.0": ("ff_context.net.0.proj", "ff_context.linear_in"),
        "txt_mlp.2": ("ff_context.net.2", "ff_context.linear_out"),
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks.{}.": {
        "linear1": (*_SINGLE, "attn.to_qkv_mlp_proj"),
        "linear2": ("proj_out", "attn.to_out"),
        "modulation.lin": ("norm.linear",),
    },
}
"""The original's layers in both kinds of block, and what diffusers makes of them, FLUX.1 or .2."""


def _fused(factors: Mapping[str, Factors], network: nn.Module) -> dict[str, Factors]:
    """The same updates under the original's names, those of a fused layer in one."""
    left, fused = dict(factors), dict[str, Factors]()
    blocks = {(".".join(name.split(".")[:2])) for name in factors}
    for block in sorted(blocks):
        known = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)", block)
        if known is None:
            continue
        kind = "single_blocks.{}." if known[1] else "double_blocks.{}."
        for original, ends in _BLOCKS[kind].items():
            names = [f"{block}.{end}" for end in ends]
            if any(name in left for name in names):
                present = [name for name in names if _has(network, name)]
                parts = [left.pop(name, None) for name in present]
                widths = [len(base_weight(network, name)) for name in present]
                fused[kind.format(known[2]) + original] = _side_by_side(parts, widths)
    if left:
        raise ValueError(
            f"{next(iter(left))} has no name in kohya's layout of FLUX, which knows the blocks "
            "alone; use --format diffusers or comfyui, or merged"
        )
    return fused


def _has(network: nn.Module, name: str) -> bool:
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True


def _side_by_side(parts: list[Factors | None], widths: list[int]) -> Factors:
    """The update of layers that are one: block by block, each with ranks of its own.

    A layer without an adapter gets zeros, so that all have the same number of ranks.
    """
    first = next(part for part in parts if part is not None)
    given = [
        part or Factors(torch.zeros_like(first.down), first.up.new_zeros(width, first.rank), 1.0)
        for part, width in zip(parts, widths, strict=True)
    ]
    rank = max(part.rank for part in given)
    scale = first.scale
    padded = [part.of_rank(rank) for part in given]
    ups = [part.up * (part.scale / scale) for part in padded]
    return Factors(torch.cat([part.down for part in padded]), torch.block_diag(*ups), scale)
