"""What a run keeps in the memory of one GPU, before it starts.

Weights are counted exactly, everything else is an estimate. In bytes, for P parameters:

- frozen weights: P x bytes of the dtype, or what quantization stores; text encoders and autoencoder
  likewise
- trained weights: P x (4 + 4 + s): fp32, fp32 gradient, and the optimizer's state, s = 8 for AdamW
- reference: 4 P after full fine-tuning, nothing with adapters, which are switched off for it
- copies that the objective keeps of the trained weights: 4 P each
- update: what autograd keeps of one micro-batch (`saved_bytes`); with gradient checkpointing the
  blocks' inputs and one block of what would be kept without it
- rollout: one block of the largest call, without a backward pass
- decoding: the widest layer of the autoencoder's decoder
- with offload, text encoders count while they encode, the autoencoder while it decodes
- probe: two fp32 copies of the attention scores of one layer, rows x heads x queries x keys
- stored rollout: transitions x 3 latents (state, next state, mean) x 4

Update, rollout, encoding, decoding and probe take turns, so the largest of them counts. Rewards,
fragments and the CUDA context (about a GiB) come on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aegpo.activation_memory import (
    denoiser_inputs,
    num_blocks,
    packs_latents,
    saved_bytes,
    transient_bytes,
)
from aegpo.policy_size import PolicySize, network_bytes

MAX_SCORES = 2**25
"""Attention scores that `attention_entropy` holds at once."""


@dataclass(frozen=True)
class MemoryLoad:
    """What of a run decides about its memory, on one rank.

    Args:
        micro_batch_rows: Rows of the denoiser in a micro-batch of an update, with guidance two for
            each sample.
        rollout_rows: Rows in the largest call of a rollout.
        decoded: Latents decoded together.
        transitions: Transitions that a rollout stores.
        probe_rows: Rows in the largest call whose attention is scored.
        scored_rows: From the number of image and text tokens to the query rows scored per head.
        needs_reference: Whether the reference policy is ever run.
        weight_copies: Copies of the trained weights that the objective keeps.
        half_activations: Whether autocast computes in half precision.
    """

    micro_batch_rows: int
    rollout_rows: int
    decoded: int
    transitions: int
    probe_rows: int
    scored_rows: Callable[[int], int]
    needs_reference: bool
    weight_copies: int
    half_activations: bool


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for.

    Args:
        stays: What is there all the time.
        takes_turns: What comes and goes; the largest counts.
    """

    stays: dict[str, float]
    takes_turns: dict[str, float]

    @property
    def peak(self) -> float:
        """What stays and the largest of what comes and goes."""
        return sum(self.stays.values()) + max(self.takes_turns.values(), default=0.0)


def estimate_memory(
    size: PolicySize, load: MemoryLoad, optimizer: Callable[..., Any]
) -> MemoryEstimate:
    """Add up what one rank keeps.

    Args:
        size: The policy's networks.
        load: What the run does with them.
        optimizer: Makes the optimizer of some parameters.

    Returns:
        The estimate; activations are left out where the denoiser's inputs are not known here.
    """
    latent = math.prod(size.latent_shape)
    stays = {
        "denoiser, frozen weights": float(size.frozen_bytes),
        "trained weights, gradients, optimizer": size.trainable
        * (4 + 4 + optimizer_state_bytes(optimizer)),
        "text encoders and autoencoder": 0.0 if size.offload else float(size.other_bytes),
        "copies of trained weights": 4.0 * size.trainable * load.weight_copies,
        "stored rollout": float(load.transitions * 3 * latent * 4),
    }
    if size.full_finetuning and load.needs_reference:
        stays["reference weights"] = 4.0 * size.trainable
    turns: dict[str, float] = {}
    compute = torch.bfloat16 if load.half_activations else _dtype(size.denoiser)
    kept = _activations_per_row(size, compute)
    if kept is not None:
        whole, checkpointed = kept
        block = (whole - checkpointed) / num_blocks(size.denoiser)
        update = checkpointed + block if size.gradient_checkpointing else whole
        turns["update of a micro-batch"] = load.micro_batch_rows * update
        turns["rollout"] = load.rollout_rows * block
    decoder = size.others.get("vae")
    if decoder is not None:
        latents = torch.empty(load.decoded, *size.latent_shape, dtype=size.dtype, device="meta")
        turns["decoding"] = float(transient_bytes(decoder, "decode", latents))
    if size.offload:
        awake = 0 if decoder is None else network_bytes(decoder)
        turns["decoding"] = turns.get("decoding", 0.0) + awake
        turns["encoding text"] = float(size.other_bytes - awake)
    tokens = _num_tokens(size)
    scored = load.scored_rows(tokens)
    if scored:
        config: Any = size.denoiser.config
        heads = int(config.get("num_attention_heads") or 8)
        scores = min(load.probe_rows * heads * scored * tokens, MAX_SCORES)
        turns["attention scores of the probe"] = 2.0 * 4 * scores
    kept_names = {name: value for name, value in stays.items() if value > 0}
    return MemoryEstimate(kept_names, turns)


def optimizer_state_bytes(optimizer: Callable[..., Any]) -> float:
    """Bytes of state that an optimizer keeps for each parameter, found by taking one step.

    Args:
        optimizer: Makes the optimizer of some parameters.

    Returns:
        Bytes per parameter: 8 for AdamW, 0 for plain SGD. Where a step cannot be taken on the CPU,
        2 for optimizers whose name says 8-bit, and 8 for others.
    """
    parameter = nn.Parameter(torch.zeros(256, 256))
    built = optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    try:
        built.step()
    except Exception:  # kernels for GPUs alone raise all sorts of things
        return 2.0 if "8bit" in type(built).__name__.lower() else 8.0
    state = [value for value in built.state[parameter].values() if isinstance(value, torch.Tensor)]
    # A step counter of one number is none of a parameter's own.
    return sum(value.nbytes for value in state if value.numel() > 1) / parameter.numel()


def _activations_per_row(size: PolicySize, compute: torch.dtype) -> tuple[float, float] | None:
    """Bytes that autograd keeps of one row, without and with gradient checkpointing."""
    rows = 8
    frozen = [p for p in size.denoiser.parameters() if not p.requires_grad or size.full_finetuning]
    before = [p.dtype for p in frozen]
    for parameter in frozen:
        parameter.data = parameter.data.to(compute)
    inputs = denoiser_inputs(size.denoiser, rows, size.latent_shape, size.num_text)
    kept: list[float] = []
    denoiser: Any = size.denoiser
    try:
        if inputs is None:
            return None
        kept.append(saved_bytes(denoiser, inputs) / rows)
        if getattr(denoiser, "_supports_gradient_checkpointing", False):
            denoiser.enable_gradient_checkpointing()
            kept.append(saved_bytes(denoiser, inputs) / rows)
            denoiser.disable_gradient_checkpointing()
    finally:
        for parameter, dtype in zip(frozen, before, strict=True):
            parameter.data = parameter.data.to(dtype)
    return kept[0], kept[-1]


def _num_tokens(size: PolicySize) -> int:
    """Image and text tokens of a joint attention; for a UNet those of its largest attention."""
    config: Any = size.denoiser.config
    patch = 2 if packs_latents(size.denoiser) else int(config.get("patch_size") or 1)
    return size.latent_shape[1] // patch * (size.latent_shape[2] // patch) + size.num_text


def _dtype(network: nn.Module) -> torch.dtype:
    """The dtype of a network's first parameter, which is none of an adapter's."""
    return next(network.parameters()).dtype
