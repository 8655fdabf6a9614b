"""What a run keeps in the memory of one GPU, before it starts.

Weights are counted exactly, everything else is an estimate. In bytes, for P parameters:

- frozen weights: P x bytes of the dtype; text encoders and autoencoder likewise. In 4 or 8 bits the
  weights of linear layers: P / 2 or P, and 4 for the scale of 64 weights or of a row
- trained weights: P x (4 + 4 + s): fp32, fp32 gradient, and the optimizer's state, s = 8 for AdamW
- reference: 4 P after full fine-tuning, nothing with adapters, which are switched off for it
- copies that the objective keeps of the trained weights, and of their gradients where their
  agreement is measured: 4 P each
- update: what autograd keeps of one micro-batch (`saved_bytes`); with gradient checkpointing the
  blocks' inputs and one block of what would be kept without it
- rollout: one block of the largest call, without a backward pass
- decoding: the widest layer of the autoencoder's decoder
- with `offload` the autoencoder while it decodes and the text encoders while they run, else both
  all the time
- spread over n ranks by FSDP2: weights, gradients, optimizer, copies and reference divided by n,
  and the whole weights of what runs (`gathered_bytes`)
- probe: two fp32 copies of the attention scores of one layer, rows x heads x queries x keys
- stored rollout: transitions x 3 latents (state, next state, mean) x 4

All of it for images of the policy's size, and where it has buckets for the largest of them.

Update, rollout, decoding and probe take turns, so the largest of them counts. Rewards, fragments
and the CUDA context (about a GiB) come on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aegpo.planning.activations import (
    attention_shapes,
    num_blocks,
    saved_bytes,
    transient_bytes,
)
from aegpo.planning.policy_size import PolicySize
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.fsdp.sharding import gathered_bytes

MAX_SCORES = 2**25
"""Attention scores that `attention_entropy` holds at once."""


@dataclass(frozen=True)
class MemoryLoad:
    """What of a run decides about its memory, on one rank.

    Args:
        micro_batch_rows: Rows of the denoiser with a graph in a micro-batch of an update, with
            guidance two for each sample, unless one branch alone carries the gradient.
        rollout_rows: Rows in the largest call of a rollout.
        decoded: Latents decoded together.
        transitions: Transitions that a rollout stores.
        probe_rows: Rows in the largest call whose attention is scored.
        scored_rows: From the number of a layer's queries to those of them scored per head.
        needs_reference: Whether the reference policy is ever run.
        weight_copies: Copies of the trained weights that the objective keeps.
        half_activations: Whether autocast computes in half precision.
        spread_over: Ranks over which FSDP2 spreads the denoiser; 1 for a whole one on each.
        gradient_copies: Copies of the trained gradients by which their agreement is measured.
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
    spread_over: int = 1
    gradient_copies: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for.

    Args:
        stays: What is there all the time.
        takes_turns: What comes and goes; the largest counts.
        left_out: What could not be estimated, and why; "" if nothing.
    """

    stays: dict[str, float]
    takes_turns: dict[str, float]
    left_out: str = ""

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
        The estimate; `left_out` says so where the denoiser cannot run without weights.
    """
    largest = max(size.policy.buckets, key=lambda bucket: bucket.area, default=None)
    with size.policy.at_resolution(largest):
        return _estimate(size, load, optimizer)


def _estimate(size: PolicySize, load: MemoryLoad, optimizer: Callable[..., Any]) -> MemoryEstimate:
    """Add up what one rank keeps for images of the policy's present size."""
    policy = size.policy
    latent = math.prod(policy.latent_shape)
    stays = {
        "denoiser, frozen weights": size.frozen_bytes,
        "trained weights, gradients, optimizer": size.trainable
        * (4 + 4 + optimizer_state_bytes(optimizer)),
        "copies of trained weights": 4.0 * size.trainable * load.weight_copies,
        "gradients of half batches": 4.0 * size.trainable * load.gradient_copies,
    }
    if policy.full_finetuning and load.needs_reference:
        stays["reference weights"] = 4.0 * size.trainable
    if load.spread_over > 1:
        stays = {name: part / load.spread_over for name, part in stays.items()}
        stays["gathered weights and gradients"] = float(gathered_bytes(policy.trained))
    stays["stored rollout"] = float(load.transitions * 3 * latent * 4)
    latents = torch.zeros(load.decoded, *policy.latent_shape, device="meta")
    widest = transient_bytes(policy.vae, lambda: policy.decode_latents(latents))
    turns = {"decoding": float(widest)}
    if policy.offload:
        turns["decoding"] += size.decoder_bytes
        turns["text encoders, while they run"] = float(size.encoder_bytes)
    else:
        stays["text encoders and autoencoder"] = float(size.encoder_bytes + size.decoder_bytes)
    left_out = ""
    try:
        turns |= _denoiser_turns(size, load)
    except (RuntimeError, NotImplementedError) as error:  # of an operation without a meta kernel
        left_out = (
            f"update, rollout and probe: {type(policy).__name__}'s denoiser cannot run without "
            f"weights ({str(error).splitlines()[0]})"
        )
    kept_names = {name: value for name, value in stays.items() if value > 0}
    return MemoryEstimate(kept_names, turns, left_out)


def optimizer_state_bytes(optimizer: Callable[..., Any]) -> float:
    """Bytes of state that an optimizer keeps for each parameter, found by taking one step.

    Args:
        optimizer: Makes the optimizer of some parameters.

    Returns:
        Bytes per parameter: 8 for AdamW, 0 for plain SGD. Where a step cannot be taken on the CPU,
        2 for optimizers whose name says 8-bit, and 8 for others.
    """
    parameter = nn.Parameter(torch.zeros(256, 256, device="cpu"))
    built = optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    try:
        built.step()
    except Exception:  # kernels for GPUs alone raise all sorts of things
        return 2.0 if "8bit" in type(built).__name__.lower() else 8.0
    state = [value for value in built.state[parameter].values() if isinstance(value, torch.Tensor)]
    # A step counter of one number is none of a parameter's own.
    return sum(value.nbytes for value in state if value.numel() > 1) / parameter.numel()


def _denoiser_turns(size: PolicySize, load: MemoryLoad) -> dict[str, float]:
    """Activations of updates and rollouts, and the attention scores of a probe."""
    policy, denoiser = size.policy, size.policy.trained
    compute = torch.bfloat16 if load.half_activations else policy.compute_dtype
    whole, checkpointed = _activations_per_row(policy, compute)
    block = (whole - checkpointed) / num_blocks(denoiser)
    update = checkpointed + block if denoiser.is_gradient_checkpointing else whole
    turns = {
        "update of a micro-batch": load.micro_batch_rows * update,
        "rollout": load.rollout_rows * block,
    }
    with _computing_in(policy, compute):
        shapes = attention_shapes(lambda: _predict(policy, 1))
    scores = max((h * load.scored_rows(queries) * keys for h, queries, keys in shapes), default=0)
    if scores:
        turns["attention scores of the probe"] = 8.0 * min(load.probe_rows * scores, MAX_SCORES)
    return turns


def _activations_per_row(policy: DiffusersPolicy, compute: torch.dtype) -> tuple[float, float]:
    """Bytes that autograd keeps of one row, without and with gradient checkpointing."""
    rows, denoiser = 8, policy.trained
    before, kept = denoiser.is_gradient_checkpointing, []
    with _computing_in(policy, compute):
        for checkpointing in (False, True):
            if checkpointing and not denoiser._supports_gradient_checkpointing:
                break
            _checkpoint(denoiser, checkpointing)
            kept.append(saved_bytes(denoiser, lambda: _predict(policy, rows)) / rows)
    _checkpoint(denoiser, before)
    return kept[0], kept[-1]


def _predict(policy: DiffusersPolicy, rows: int) -> Tensor:
    latents = torch.zeros(rows, *policy.latent_shape, device="meta")
    sigma = torch.zeros(rows, device="meta")
    return policy.predict(latents, sigma, policy.blank_conditioning(rows))


def _checkpoint(denoiser: Any, checkpointing: bool) -> None:
    if denoiser.is_gradient_checkpointing != checkpointing:
        switch = "enable" if checkpointing else "disable"
        getattr(denoiser, f"{switch}_gradient_checkpointing")()


@contextmanager
def _computing_in(policy: DiffusersPolicy, compute: torch.dtype) -> Iterator[None]:
    """Inside, all but adapters has this dtype, which is what autocast computes in."""
    frozen = [
        p for p in policy.trained.parameters() if not p.requires_grad or policy.full_finetuning
    ]
    before = [p.dtype for p in frozen]
    for parameter in frozen:
        parameter.data = parameter.data.to(compute)
    try:
        yield
    finally:
        for parameter, dtype in zip(frozen, before, strict=True):
            parameter.data = parameter.data.to(dtype)
