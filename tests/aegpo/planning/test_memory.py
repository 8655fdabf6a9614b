"""Memory of a run from configuration files alone, set against the real networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from aegpo.planning.activations import num_blocks
from aegpo.planning.memory import MemoryLoad, estimate_memory, optimizer_state_bytes
from aegpo.planning.policy_size import PolicySize, policy_size
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3

ARGUMENTS: dict[str, Any] = {"lora_rank": 4, "max_sequence_length": 4}


def sizes(folder: Path, **arguments: Any) -> PolicySize:
    return policy_size(StableDiffusion3, {"pretrained": str(folder), **ARGUMENTS, **arguments})


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


def test_what_adds_up_and_what_takes_turns(tiny_sd3_folder: Path) -> None:
    size = sizes(tiny_sd3_folder)
    denoiser = size.policy.denoiser
    memory = estimate_memory(size, load(), ADAMW)
    assert memory.stays["trained weights, gradients, optimizer"] == 16 * size.trainable
    c, h, w = size.policy.latent_shape
    assert memory.stays["stored rollout"] == 10 * 3 * c * h * w * 4
    assert "reference weights" not in memory.stays  # adapters are switched off instead
    assert memory.peak == sum(memory.stays.values()) + max(memory.takes_turns.values())

    turn = "update of a micro-batch"
    twice = estimate_memory(size, load(micro_batch_rows=32), ADAMW).takes_turns[turn]
    assert twice == 2 * memory.takes_turns[turn]
    again = estimate_memory(sizes(tiny_sd3_folder, gradient_checkpointing=True), load(), ADAMW)
    # One block out of two is computed again, and its activations are there while it is.
    assert num_blocks(denoiser) == 2
    assert 0.4 < again.takes_turns[turn] / memory.takes_turns[turn] < 0.8
    half = estimate_memory(size, load(half_activations=True), ADAMW).takes_turns[turn]
    assert half < memory.takes_turns[turn]
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}  # as it was

    tokens = (h // 2) * (w // 2) + size.policy.blank_conditioning(1).embeds.shape[1]
    probed = estimate_memory(size, load(probe_rows=3, scored_rows=lambda n: n), ADAMW)
    heads = denoiser.config.num_attention_heads
    assert probed.takes_turns["attention scores of the probe"] == 8 * 3 * heads * tokens**2


def test_full_finetuning_keeps_a_reference_and_an_objective_its_copies(
    tiny_sd3_folder: Path,
) -> None:
    size = sizes(tiny_sd3_folder, full_finetuning=True)
    memory = estimate_memory(size, load(weight_copies=1, gradient_copies=6), ADAMW)
    assert memory.stays["gradients of half batches"] == 6 * 4 * size.trainable
    assert memory.stays["reference weights"] == 4 * size.trainable
    assert memory.stays["copies of trained weights"] == 4 * size.trainable
    without = estimate_memory(size, load(needs_reference=False), ADAMW)
    assert "reference weights" not in without.stays


def test_what_is_spread_over_ranks_is_divided_and_gathered_block_by_block(
    tiny_sd3_folder: Path,
) -> None:
    size = sizes(tiny_sd3_folder, full_finetuning=True)
    whole = estimate_memory(size, load(weight_copies=1), ADAMW).stays
    spread = estimate_memory(size, load(weight_copies=1, spread_over=8), ADAMW).stays
    gathered = spread.pop("gathered weights and gradients")
    encoders, stored = "text encoders and autoencoder", "stored rollout"
    assert spread.keys() == whole.keys()
    for name, bytes_of in spread.items():
        assert bytes_of == whole[name] / (1 if name in (encoders, stored) else 8), name
    denoiser = size.policy.trained
    blocks = [
        4 * sum(p.numel() for p in block.parameters()) for block in denoiser.transformer_blocks
    ]
    around = 4 * size.trainable - sum(blocks)
    # Two blocks, the gradients of one, and what is around them with its gradients.
    assert gathered == 3 * max(blocks) + 2 * around


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


def test_of_buckets_the_largest_counts(tiny_sd3_folder: Path) -> None:
    largest = estimate_memory(sizes(tiny_sd3_folder, resolution=(32, 24)), load(), ADAMW)
    size = sizes(tiny_sd3_folder, resolution=[(16, 16), (32, 24), (48, 8)])
    bucketed = estimate_memory(size, load(), ADAMW)
    assert bucketed == largest and size.policy.image_size == (16, 16)
    smallest = estimate_memory(sizes(tiny_sd3_folder, resolution=16), load(), ADAMW)
    assert smallest.stays["stored rollout"] * 3 == largest.stays["stored rollout"]
    assert smallest.peak < largest.peak
