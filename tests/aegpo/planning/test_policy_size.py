"""Sizes of every family from its configuration files alone, set against the policy itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, Family
from torch import Tensor, nn

from aegpo.planning.activations import saved_bytes
from aegpo.planning.memory import MemoryLoad, estimate_memory
from aegpo.planning.policy_size import PolicySize, policy_of, policy_size
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.sana import Sana
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
LOAD = MemoryLoad(
    micro_batch_rows=2,
    rollout_rows=4,
    decoded=2,
    transitions=10,
    probe_rows=3,
    scored_rows=lambda queries: queries,
    needs_reference=True,
    weight_copies=0,
    half_activations=False,
)
PROMPTS = ["a red circle", "a"]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family.name)
    family.pipeline().save_pretrained(path)
    return path


def num_bytes(*networks: nn.Module) -> int:
    tensors = [t for part in networks for t in [*part.parameters(), *part.buffers()]]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.fixture(scope="module")
def policy(family: Family, folder: Path) -> DiffusersPolicy:
    return family.policy(**family.arguments(folder, lora_rank=4, **family.guided))


@pytest.fixture(scope="module")
def size(family: Family, folder: Path) -> PolicySize:
    """Of adapters without guidance; to be looked at only."""
    return policy_size(family.policy, family.arguments(folder, lora_rank=4))


def test_a_policy_without_weights_is_as_large_as_the_real_one(
    family: Family, folder: Path, policy: DiffusersPolicy, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = family.arguments(folder, lora_rank=4, **family.guided)
    size = policy_size(family.policy, arguments)
    assert "Loading" not in "".join(capfd.readouterr()), "nothing is"
    planned = size.policy
    tensors = [*planned.denoiser.parameters(), *planned.vae.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert size.trainable == sum(p.numel() for p in policy.trainable_parameters()) > 0
    frozen = [p for p in policy.denoiser.parameters() if not p.requires_grad]
    assert size.frozen == sum(p.numel() for p in frozen)
    assert size.frozen_bytes == num_bytes(policy.denoiser) - 4 * size.trainable
    assert size.encoder_bytes == num_bytes(policy.text_encoders)
    assert size.decoder_bytes == num_bytes(policy.vae)
    assert planned.latent_shape == policy.latent_shape
    assert planned.guidance_scale == policy.guidance_scale
    assert (
        family.policy.classifier_free_guidance({"guidance_scale": None, **arguments})
        == policy.guidance_scale
    )

    blank, real = planned.blank_conditioning(2), policy.encode(PROMPTS)
    assert blank.embeds.shape == real.embeds.shape and blank.mask is not None
    assert (blank.pooled is None) == (real.pooled is None)
    if blank.pooled is not None:
        assert blank.pooled.shape == real.pooled.shape


def test_full_finetuning_trains_every_weight(family: Family, folder: Path) -> None:
    arguments = family.arguments(folder, full_finetuning=True, dtype="bfloat16")
    size, policy = policy_size(family.policy, arguments), family.policy(**arguments)
    assert size.trainable == sum(p.numel() for p in policy.trainable_parameters())
    assert size.frozen == 0
    memory = estimate_memory(size, LOAD, ADAMW)
    assert memory.stays["reference weights"] == 4 * size.trainable


def kept_for_real(policy: DiffusersPolicy, rows: int) -> int:
    """Bytes that autograd keeps of a prediction on the CPU, by the address of the memory."""
    parameters = {p.untyped_storage().data_ptr() for p in policy.trained.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    policy.train()
    latents = torch.randn(rows, *policy.latent_shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.predict(latents, torch.full((rows,), 0.5), policy.blank_conditioning(rows))
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in parameters
    )


def test_activations_are_what_autograd_keeps(size: PolicySize, policy: DiffusersPolicy) -> None:
    planned = size.policy
    latents = torch.zeros(8, *planned.latent_shape, device="meta")
    sigma, blank = torch.zeros(8, device="meta"), planned.blank_conditioning(8)
    expected = saved_bytes(planned.trained, lambda: planned.predict(latents, sigma, blank))
    assert expected == pytest.approx(kept_for_real(policy, 8), rel=0.1)


def test_nothing_is_left_out_of_the_estimate(
    family: Family, folder: Path, size: PolicySize
) -> None:
    memory = estimate_memory(size, LOAD, ADAMW)
    assert memory.left_out == ""
    turns = {"update of a micro-batch", "rollout", "decoding", "attention scores of the probe"}
    assert memory.takes_turns.keys() == turns
    assert all(value > 0 for value in [*memory.stays.values(), *memory.takes_turns.values()])
    assert memory.stays["text encoders and autoencoder"] == size.encoder_bytes + size.decoder_bytes

    # What is saved by checkpointing is the update's, and by offloading the rest's.
    saving = family.arguments(folder, lora_rank=4, gradient_checkpointing=True, offload=True)
    saved = estimate_memory(policy_size(family.policy, saving), LOAD, ADAMW)
    turn = "update of a micro-batch"
    assert saved.takes_turns[turn] < memory.takes_turns[turn]
    assert "text encoders and autoencoder" not in saved.stays
    assert saved.takes_turns["text encoders, while they run"] == size.encoder_bytes
    added = saved.takes_turns["decoding"] - memory.takes_turns["decoding"]
    assert added == size.decoder_bytes


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_are_counted_as_they_are_stored(
    kind: str, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes as bnb

    size = policy_size(
        StableDiffusion3,
        {"pretrained": str(tiny_sd3_folder), "dtype": "bfloat16", "quantize": kind},
    )
    plain = policy_size(StableDiffusion3, {"pretrained": str(tiny_sd3_folder), "dtype": "bfloat16"})
    assert (size.frozen, size.trainable) == (plain.frozen, plain.trainable)
    expected = plain.frozen_bytes
    policy = StableDiffusion3(str(tiny_sd3_folder), dtype="bfloat16")
    for module in policy.denoiser.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            expected -= module.weight.nbytes
            if kind == "nf4":
                packed, state = bnb.functional.quantize_4bit(module.weight.data, quant_type="nf4")
                expected += packed.nbytes + state.absmax.nbytes
            else:
                rows, scales, _ = bnb.functional.int8_vectorwise_quant(module.weight.data.half())
                expected += rows.nbytes + scales.nbytes
    assert size.frozen_bytes == expected < 0.8 * plain.frozen_bytes


def test_what_cannot_run_without_weights_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAMILIES[7].pipeline().save_pretrained(tmp_path)

    def reads(policy: Sana, latents: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return latents * float(latents.sum())

    monkeypatch.setattr(Sana, "predict", reads)
    memory = estimate_memory(policy_size(Sana, FAMILIES[7].arguments(tmp_path)), LOAD, ADAMW)
    assert memory.left_out.startswith("update, rollout and probe: Sana's ")
    assert "denoiser cannot run without weights" in memory.left_out and "\n" not in memory.left_out
    assert memory.takes_turns.keys() == {"decoding"}


def test_a_factory_names_its_class_and_arguments() -> None:
    def built_by_the_command_line(kind: type, **arguments: Any) -> Any:
        return kind(**arguments)

    factory = partial(built_by_the_command_line, StableDiffusion3, pretrained="a", lora_rank=2)
    assert policy_of(factory) == (StableDiffusion3, {"pretrained": "a", "lora_rank": 2})
    assert policy_of(partial(StableDiffusion3, "a")) == (StableDiffusion3, {"pretrained": "a"})
    assert policy_of(StableDiffusion3) == (StableDiffusion3, {})
    assert policy_of(lambda: None) == (None, {})
