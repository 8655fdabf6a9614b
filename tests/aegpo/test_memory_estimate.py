"""Memory of a run from configuration files alone, set against the real networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_flux import tiny_flux
from torch import Tensor

from aegpo.activation_memory import denoiser_inputs, num_blocks, saved_bytes
from aegpo.memory_estimate import MemoryLoad, estimate_memory, optimizer_state_bytes
from aegpo.policies import Flux, StableDiffusion, StableDiffusion3, StableDiffusionXL
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policy_size import PolicySize, policy_of, policy_size

ARGUMENTS: dict[str, Any] = {"lora_rank": 4, "max_sequence_length": 4}


def sizes(folder: Path, **arguments: Any) -> PolicySize:
    return policy_size(StableDiffusion3, {"pretrained": str(folder), **ARGUMENTS, **arguments})


def real(folder: Path, **arguments: Any) -> StableDiffusion3:
    return StableDiffusion3(str(folder), **{**ARGUMENTS, **arguments})


def load(**changes: Any) -> MemoryLoad:
    settings: dict[str, Any] = {
        "micro_batch_rows": 16,
        "rollout_rows": 16,
        "decoded": 4,
        "transitions": 10,
        "probe_rows": 0,
        "scored_rows": lambda tokens: 0,
        "needs_reference": True,
        "weight_copies": 0,
        "half_activations": False,
    }
    return MemoryLoad(**settings | changes)


ADAMW = partial(torch.optim.AdamW, lr=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lora_targets": ["attention", "feed_forward"]},
        {"dtype": "bfloat16"},
        {"full_finetuning": True, "dtype": "bfloat16"},
        {"resolution": 32},
    ],
    ids=str,
)
def test_the_networks_without_weights_are_as_large_as_the_real_ones(
    tiny_sd3_dual_folder: Path, arguments: dict[str, Any]
) -> None:
    size, policy = sizes(tiny_sd3_dual_folder, **arguments), real(tiny_sd3_dual_folder, **arguments)
    assert {p.device.type for p in size.denoiser.parameters()} == {"meta"}
    assert size.trainable == sum(p.numel() for p in policy.trainable_parameters())
    real_tensors = [*policy.denoiser.parameters(), *policy.denoiser.buffers()]
    assert size.frozen_bytes == sum(t.nbytes for t in real_tensors if not t.requires_grad)
    others = [policy.vae, policy.text_encoders]
    assert size.other_bytes == sum(
        t.nbytes for part in others for t in [*part.parameters(), *part.buffers()]
    )
    assert size.latent_shape == policy.latent_shape
    assert size.num_text == policy.encode(["a red circle"]).embeds.shape[1]


@pytest.mark.parametrize("family", [Flux, StableDiffusion, StableDiffusionXL])
def test_other_families_are_as_large_and_keep_as_much_as_the_real_ones(
    family: type[DiffusersPolicy],
    tmp_path: Path,
    tiny_sd15_folder: Path,
    tiny_sdxl_folder: Path,
) -> None:
    arguments: dict[str, Any] = {"lora_rank": 4, "resolution": 32}
    folder = tiny_sd15_folder if family is StableDiffusion else tiny_sdxl_folder
    if family is Flux:
        folder, arguments["max_sequence_length"] = tmp_path, 8
        tiny_flux().save_pretrained(folder)
    size = policy_size(family, {"pretrained": str(folder), **arguments})
    policy = family(str(folder), **arguments)
    cond = policy.encode(["a red circle"] * 4)
    assert size.trainable == sum(p.numel() for p in policy.trainable_parameters())
    assert size.frozen == sum(p.numel() for p in policy.denoiser.parameters()) - size.trainable
    assert size.latent_shape == policy.latent_shape
    assert size.num_text == cond.embeds.shape[1]

    inputs = denoiser_inputs(size.denoiser, 4, size.latent_shape, size.num_text)
    assert inputs is not None
    parameters = {p.data_ptr() for p in policy.denoiser.train().parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.predict(torch.randn(4, *policy.latent_shape), torch.full((4,), 0.5), cond)
    real_bytes = sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in parameters
    )
    assert saved_bytes(size.denoiser, inputs) == pytest.approx(real_bytes, rel=0.05)


def test_quantized_and_offloaded_networks_take_less(tiny_sd3_dual_folder: Path) -> None:
    plain = sizes(tiny_sd3_dual_folder, dtype="bfloat16")
    stored = sizes(tiny_sd3_dual_folder, dtype="bfloat16", quantize="nf4", offload=True)
    matrices = [m.weight for m in plain.denoiser.modules() if isinstance(m, torch.nn.Linear)]
    frozen = sum(matrix.numel() for matrix in matrices if not matrix.requires_grad)
    # Half a byte for a weight and four bytes for each 64 of them, in the place of two bytes.
    spared = frozen * (2 - 0.5 - 4 / 64)
    assert plain.frozen_bytes - stored.frozen_bytes == pytest.approx(spared, abs=1)

    before, after = (estimate_memory(size, load(), ADAMW) for size in (plain, stored))
    vae = sum(t.nbytes for t in plain.others["vae"].state_dict().values())
    assert "text encoders and autoencoder" not in after.stays
    assert after.takes_turns["decoding"] - before.takes_turns["decoding"] == vae
    assert after.takes_turns["encoding text"] == plain.other_bytes - vae


def kept_for_real(policy: StableDiffusion3, rows: int, num_text: int) -> int:
    """Bytes that autograd keeps on the CPU, by the address of each tensor's memory."""
    network = policy.denoiser.train()
    parameters = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    config = network.config
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(
            hidden_states=torch.randn(rows, *policy.latent_shape),
            timestep=torch.rand(rows),
            encoder_hidden_states=torch.randn(rows, num_text, config.joint_attention_dim),
            pooled_projections=torch.randn(rows, config.pooled_projection_dim),
        )
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in parameters
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps_of_the_real_network(
    tiny_sd3_dual_folder: Path, checkpointing: bool
) -> None:
    size = sizes(tiny_sd3_dual_folder)
    if checkpointing:
        size.denoiser.enable_gradient_checkpointing()
    inputs = denoiser_inputs(size.denoiser, 16, size.latent_shape, size.num_text)
    assert inputs is not None
    planned = saved_bytes(size.denoiser, inputs)
    policy = real(tiny_sd3_dual_folder, gradient_checkpointing=checkpointing)
    assert planned == pytest.approx(kept_for_real(policy, 16, size.num_text), rel=0.05)


def test_what_adds_up_and_what_takes_turns(tiny_sd3_folder: Path) -> None:
    size = sizes(tiny_sd3_folder)
    memory = estimate_memory(size, load(), ADAMW)
    assert memory.stays["trained weights, gradients, optimizer"] == 16 * size.trainable
    c, h, w = size.latent_shape
    assert memory.stays["stored rollout"] == 10 * 3 * c * h * w * 4
    assert "reference weights" not in memory.stays  # adapters are switched off instead
    assert memory.peak == sum(memory.stays.values()) + max(memory.takes_turns.values())

    turn = "update of a micro-batch"
    twice = estimate_memory(size, load(micro_batch_rows=32), ADAMW).takes_turns[turn]
    assert twice == 2 * memory.takes_turns[turn]
    again = estimate_memory(sizes(tiny_sd3_folder, gradient_checkpointing=True), load(), ADAMW)
    # One block out of two is computed again, and its activations are there while it is.
    assert num_blocks(size.denoiser) == 2
    assert 0.4 < again.takes_turns[turn] / memory.takes_turns[turn] < 0.8
    half = estimate_memory(size, load(half_activations=True), ADAMW).takes_turns[turn]
    assert half < memory.takes_turns[turn]
    assert {p.dtype for p in size.denoiser.parameters()} == {torch.float32}  # as it was

    tokens = (h // 2) * (w // 2) + size.num_text
    probed = estimate_memory(size, load(probe_rows=3, scored_rows=lambda n: n), ADAMW)
    heads = size.denoiser.config.num_attention_heads
    assert probed.takes_turns["attention scores of the probe"] == 8 * 3 * heads * tokens**2


def test_full_finetuning_keeps_a_reference_and_an_objective_its_copies(
    tiny_sd3_folder: Path,
) -> None:
    size = sizes(tiny_sd3_folder, full_finetuning=True)
    memory = estimate_memory(size, load(weight_copies=1), ADAMW)
    assert memory.stays["reference weights"] == 4 * size.trainable
    assert memory.stays["copies of trained weights"] == 4 * size.trainable
    without = estimate_memory(size, load(needs_reference=False), ADAMW)
    assert "reference weights" not in without.stays


class AdamW8bit(torch.optim.SGD):
    """Named as the optimizers whose kernels need a GPU."""

    def step(self, closure: Any = None) -> None:
        raise RuntimeError("no kernel for this device")


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (ADAMW, 8),
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 4),
        (partial(AdamW8bit, lr=0.1), 2),
    ],
)
def test_the_state_of_an_optimizer(optimizer: Any, expected: float) -> None:
    assert optimizer_state_bytes(optimizer) == expected


def test_a_factory_names_its_class_and_arguments() -> None:
    def built_by_the_command_line(kind: type, **arguments: Any) -> Any:
        return kind(**arguments)

    factory = partial(built_by_the_command_line, StableDiffusion3, pretrained="a", lora_rank=2)
    assert policy_of(factory) == (StableDiffusion3, {"pretrained": "a", "lora_rank": 2})
    assert policy_of(partial(StableDiffusion3, "a")) == (StableDiffusion3, {"pretrained": "a"})
    assert policy_of(StableDiffusion3) == (StableDiffusion3, {})
    assert policy_of(lambda: None) == (None, {})
