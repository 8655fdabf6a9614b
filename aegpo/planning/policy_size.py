"""How large a policy is, from its pipeline's JSON files alone: networks on torch's `meta` device.

Nothing is allocated and no weight is read; for a hub id configurations and tokenizers are fetched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from aegpo.policies.base import Policy
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.pretrained import quietly, read_model_index

QUANTIZED_BYTES = {"nf4": (0.5, 64), "int8": (1.0, None)}
"""Bytes of a quantized weight, and how many of them share a scale of 4 bytes; None for a row."""


@dataclass(frozen=True, eq=False)
class PolicySize:
    """A policy whose networks have no weights.

    Args:
        policy: The policy as its constructor makes it, on the meta device: frozen weights in their
            dtype, what is trained in fp32. It predicts and decodes, shapes for want of numbers.
    """

    policy: DiffusersPolicy

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.policy.denoiser.parameters() if p.requires_grad)

    @property
    def frozen(self) -> int:
        """Number of the denoiser's frozen parameters."""
        return sum(p.numel() for p in self.policy.denoiser.parameters() if not p.requires_grad)

    @property
    def frozen_bytes(self) -> float:
        """Bytes of the denoiser's frozen parameters and its buffers, as they are stored."""
        denoiser = self.policy.denoiser
        total = float(_num_bytes([denoiser]) - 4 * self.trainable)
        if self.policy.quantize is None:
            return total
        each, block = QUANTIZED_BYTES[self.policy.quantize]
        for module in denoiser.modules():
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                weight = module.weight
                scales = -(-weight.numel() // block) if block else module.out_features
                total += each * weight.numel() + 4 * scales - weight.nbytes
        return total

    @property
    def encoder_bytes(self) -> int:
        """Bytes of the text encoders."""
        return _num_bytes([self.policy.text_encoders])

    @property
    def decoder_bytes(self) -> int:
        """Bytes of the autoencoder."""
        return _num_bytes([self.policy.vae])


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


def policy_size(policy: type[DiffusersPolicy], arguments: Mapping[str, Any]) -> PolicySize:
    """Build a policy on the meta device.

    Args:
        policy: The class.
        arguments: Arguments of its constructor; `pretrained` is needed.

    Returns:
        The policy without weights.

    Raises:
        ValueError: If an argument is out of range, or a LoRA target matches nothing.
        FileNotFoundError: If there is no such pipeline, or the hub cannot be reached.
    """

    class Planned(policy):  # type: ignore[misc, valid-type]
        @property
        def compute_dtype(self) -> torch.dtype:
            """Of the denoiser as it is, which an estimate may change."""
            return _dtype(self.trained)

        def load_clean_pipeline(self) -> DiffusionPipeline:
            return _load_on_meta(
                self._source, self.pipeline_class, self._frozen_dtype, self.load_options
            )

    Planned.__name__ = policy.__name__  # messages name the class
    # A compiled network cannot run on this device, and is as large as another.
    return PolicySize(Planned(**{**arguments, "compile": False}))


def _load_on_meta(
    source: str | Path,
    pipeline: type[DiffusionPipeline],
    dtype: torch.dtype,
    options: Mapping[str, Any],
) -> DiffusionPipeline:
    """A pipeline without weights; tokenizers and scheduler are the real ones."""
    index = read_model_index(source, pipeline, options)
    parts: dict[str, nn.Module | None] = {}
    for name, part in index.items():
        if isinstance(part, list) and name not in options:
            network = _on_meta(source, name, *part)
            if network is not None:
                # diffusers' own `to` warns where the dtype changes.
                parts[name] = nn.Module.to(network, dtype).eval()
            elif not any(part):
                parts[name] = None
    with quietly(source):
        loaded: DiffusionPipeline = pipeline.from_pretrained(
            source, local_files_only=isinstance(source, Path), **parts, **options
        )
    return loaded


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


def _num_bytes(networks: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers."""
    tensors: list[Tensor] = []
    for network in networks:
        tensors += [*network.parameters(), *network.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def _dtype(network: nn.Module) -> torch.dtype:
    """The dtype of a network's first parameter, which is none of an adapter's."""
    return next(network.parameters()).dtype
