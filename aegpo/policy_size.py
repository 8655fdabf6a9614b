"""How large a pipeline is, from its JSON files alone: its networks on torch's `meta` device.

Nothing is allocated and no weight is read; for a hub id only the configuration files are fetched.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, StableDiffusion3Pipeline
from torch import nn

from aegpo.activation_memory import packs_latents
from aegpo.policies.base import Policy
from aegpo.policies.lora import add_lora, match_targets
from aegpo.policies.pretrained import find_pipeline, read_model_index

QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a weight as bitsandbytes stores it: 4 bits and an fp32 scale for each 64, or one."""
DEFAULT_SIDE = 128
"""Height and width of the latents of pipelines whose denoiser names no size, such as FLUX."""


@dataclass(frozen=True, eq=False)
class PolicySize:
    """The networks of a policy, without their weights.

    Args:
        denoiser: On the meta device, in the dtype of the frozen weights, with adapters if there
            are any; what is trained is fp32.
        others: Text encoders and autoencoder by their names in the pipeline, likewise.
        latent_shape: Shape of one latent, (C, H, W).
        num_text: Text tokens that the denoiser sees.
        full_finetuning: Whether all of the denoiser is trained.
        gradient_checkpointing: Whether activations are computed twice.
        dtype: Of the frozen weights.
        quantize: How the denoiser's frozen matrices are stored instead: "nf4", "int8" or None.
        offload: Whether the other networks wait in CPU memory.
    """

    denoiser: nn.Module
    others: dict[str, nn.Module]
    latent_shape: tuple[int, int, int]
    num_text: int
    full_finetuning: bool
    gradient_checkpointing: bool
    dtype: torch.dtype
    quantize: str | None = None
    offload: bool = False

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.denoiser.parameters() if p.requires_grad)

    @property
    def frozen(self) -> int:
        """Number of the denoiser's frozen parameters."""
        return sum(p.numel() for p in self.denoiser.parameters() if not p.requires_grad)

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the denoiser's frozen parameters and its buffers."""
        tensors = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        bytes_kept = sum(tensor.nbytes for tensor in tensors if not tensor.requires_grad)
        if self.quantize is None:
            return bytes_kept
        matrices = [m.weight for m in self.denoiser.modules() if isinstance(m, nn.Linear)]
        frozen = [matrix for matrix in matrices if not matrix.requires_grad]
        per_weight = QUANTIZED_BYTES[self.quantize]
        stored = sum(matrix.numel() * per_weight for matrix in frozen)
        return bytes_kept - sum(matrix.nbytes for matrix in frozen) + math.ceil(stored)

    @property
    def other_bytes(self) -> int:
        """Bytes of the parameters and buffers of all other networks."""
        return sum(network_bytes(network) for network in self.others.values())


def network_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


def policy_of(factory: Callable[..., Any]) -> tuple[type[Policy] | None, dict[str, Any]]:
    """Say what a policy factory will build, without calling it.

    Args:
        factory: A `functools.partial` as the command line makes them, or of the class itself, or
            the class.

    Returns:
        The class, None if the factory is a function, and the constructor's arguments as given.
    """
    parts = [factory]
    if isinstance(factory, partial):
        parts = [*factory.args, factory.func]
    found = [part for part in parts if isinstance(part, type) and issubclass(part, Policy)]
    if not found:
        return None, {}
    keywords = dict(factory.keywords) if isinstance(factory, partial) else {}
    if isinstance(factory, partial) and factory.func is found[0] and factory.args:
        keywords["pretrained"] = factory.args[0]
    return found[0], keywords


def policy_size(policy: type[Policy], arguments: Mapping[str, Any]) -> PolicySize:
    """Build a policy's networks on the meta device.

    Args:
        policy: The class; `pipeline_class`, `denoiser_name` and `lora_groups` are read from it,
            where it has them.
        arguments: Arguments of its constructor; `pretrained` is needed.

    Returns:
        The networks.

    Raises:
        ValueError: If the class takes no `pretrained` pipeline, or a LoRA target matches nothing.
        FileNotFoundError: If there is no such pipeline, or the hub cannot be reached.
    """
    if "pretrained" not in arguments:
        raise ValueError(f"{policy.__name__} takes no pretrained pipeline")
    source = find_pipeline(str(arguments["pretrained"]))
    pipeline: type[DiffusionPipeline] = getattr(policy, "pipeline_class", StableDiffusion3Pipeline)
    index = read_model_index(source, pipeline)
    name = str(getattr(policy, "denoiser_name", "transformer"))
    dtype: torch.dtype = getattr(torch, str(arguments.get("dtype") or "float32"))
    listed = {part: named for part, named in index.items() if isinstance(named, list)}
    built = {part: _on_meta(source, part, *named) for part, named in listed.items()}
    parts = {part: network for part, network in built.items() if network is not None}
    for network in parts.values():
        nn.Module.to(network, dtype)  # diffusers' own `to` warns where the dtype changes
    denoiser = parts.pop(name).requires_grad_(False)
    full = bool(arguments.get("full_finetuning", False))
    if full:
        nn.Module.float(denoiser).requires_grad_(True)
    elif (rank := arguments.get("lora_rank", 32)) is not None:
        layers = match_targets(
            denoiser, arguments.get("lora_targets") or ["attention"], _lora_groups(policy)
        )
        add_lora(denoiser, layers, int(rank), float(rank), seed=0)
    return PolicySize(
        denoiser=denoiser,
        others=parts,
        latent_shape=_latent_shape(denoiser, parts.get("vae"), arguments.get("resolution")),
        num_text=_num_text(denoiser, parts, arguments),
        full_finetuning=full,
        gradient_checkpointing=bool(arguments.get("gradient_checkpointing", False)),
        dtype=dtype,
        quantize=arguments.get("quantize"),
        offload=bool(arguments.get("offload", False)),
    )


def _on_meta(source: str | Path, part: str, library: Any, name: Any = None) -> nn.Module | None:
    """One part of a pipeline without its weights; None for what is no network, or absent."""
    libraries = {"diffusers": diffusers, "transformers": transformers}
    known: Any = getattr(libraries.get(library), str(name), None)
    if not inspect.isclass(known):
        return None
    make: Any = known  # diffusers and transformers declare no types
    local = isinstance(source, Path)
    with torch.device("meta"):
        if issubclass(known, ModelMixin):
            config = make.load_config(source, subfolder=part, local_files_only=local)
            network: nn.Module = make.from_config(config)
            return network
        if issubclass(known, transformers.PreTrainedModel):
            config = make.config_class.from_pretrained(
                source, subfolder=part, local_files_only=local
            )
            network = make(config)
            return network
    return None


def _lora_groups(policy: type[Policy]) -> Mapping[str, Any]:
    groups = getattr(policy, "lora_groups", None)
    if groups is None:
        groups = getattr(sys.modules[policy.__module__], "LORA_GROUPS", {})
    return dict(groups)


def _latent_shape(denoiser: Any, vae: Any, resolution: int | None) -> tuple[int, int, int]:
    """(C, H, W) before any packing: the model's own size, or that of a resolution."""
    config = getattr(vae, "config", {})
    channels = int(config.get("latent_channels") or denoiser.config.in_channels)
    side = int(denoiser.config.get("sample_size") or DEFAULT_SIDE)
    if resolution is not None and "block_out_channels" in config:
        side = resolution // 2 ** (len(config["block_out_channels"]) - 1)
    return (channels, side, side)


def _num_text(denoiser: Any, parts: Mapping[str, Any], arguments: Mapping[str, Any]) -> int:
    """Text tokens that the denoiser sees: CLIP's positions, T5's or the zeros in their place."""
    longest = int(arguments.get("max_sequence_length") or 0)
    if packs_latents(denoiser):
        return longest  # FLUX sees the tokens of its last encoder alone
    clip = getattr(getattr(parts.get("text_encoder"), "config", None), "max_position_embeddings", 0)
    return int(clip) + longest
