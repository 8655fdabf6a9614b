from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
)
from torch import Tensor

from aegpo.policies.families.sana import HUMAN_INSTRUCTION, Sana, flow_euler_scheduler
from aegpo.sde import FlowSDE

TEXT = 32
INSTRUCTION = ["two stars:", "- a star "]


def build(folder: Path, **arguments: Any) -> Sana:
    settings = {
        "lora_rank": 4,
        "max_sequence_length": TEXT,
        "complex_human_instruction": INSTRUCTION,
        **arguments,
    }
    return Sana(str(folder), **settings)


look = contract.shared(build)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_sana import save_tiny_sana

    return save_tiny_sana(tmp_path_factory.mktemp("tiny_sana"))


def clean(folder: Path) -> SanaPipeline:
    pipeline = SanaPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("scale", [1.0, 3.5])
@pytest.mark.parametrize("instruction", [None, INSTRUCTION], ids=["bare", "instructed"])
def test_rollout_is_the_pipeline(folder: Path, scale: float, instruction: list[str] | None) -> None:
    policy = look(
        folder,
        guidance_scale=scale,
        negative_prompt="a star",
        complex_human_instruction=instruction,
        sigma_spacing="scheduler" if instruction is None else "uniform",
    )
    contract.assert_rollout_is_the_pipeline(policy)


def test_with_the_defaults_of_the_pipeline(folder: Path) -> None:
    """The bare call, whose only addition is the scheduler."""
    policy = Sana(str(folder), guidance_scale=4.5)
    pipeline = clean(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    images = pipeline(
        contract.PROMPTS,
        height=32,
        width=32,
        num_inference_steps=2,
        latents=contract.start_noise(policy),
        use_resolution_binning=False,
        output_type="pt",
    ).images
    drawn = contract.draw(policy, 2).images
    assert drawn is not None and (drawn - images).abs().max() <= 1e-4
    assert HUMAN_INSTRUCTION[-1] == "User Prompt: "


def test_uniform_spacing_has_the_noise_levels_of_the_published_solver(folder: Path) -> None:
    solver = clean(folder).scheduler
    assert isinstance(solver, DPMSolverMultistepScheduler)
    solver.set_timesteps(10)
    sigmas = look(folder, sigma_spacing="uniform").sigmas(10)
    torch.testing.assert_close(sigmas, solver.sigmas.float(), rtol=0, atol=1e-3)
    shifted = look(folder, sigma_spacing="uniform", shift=2.0).sigmas(4)
    even = torch.linspace(1, 0, 5)
    torch.testing.assert_close(shifted, 2 * even / (1 + even))


def test_schedulers() -> None:
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.5)
    assert flow_euler_scheduler(solver).config.shift == 2.5
    euler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    assert flow_euler_scheduler(euler) is euler
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for other in (DDIMScheduler(), DPMSolverMultistepScheduler(), dynamic):
        with pytest.raises(ValueError, match="has no static flow shift"):
            flow_euler_scheduler(other)


def text_positions(policy: Sana, prompt: str) -> Tensor:
    """Where the pipeline leaves real text: the first token, and those from the instruction's last
    one on, which is the pipeline's own choice of tokens."""
    tokenizer, instruction = policy.pipeline.tokenizer, "\n".join(INSTRUCTION)
    whole = len(tokenizer(instruction + prompt).input_ids)
    dropped = len(tokenizer(instruction).input_ids) - 2
    return torch.arange(min(whole - dropped, TEXT))


def test_texts_are_padded_and_masked(folder: Path) -> None:
    policy = look(folder)
    cond = policy.encode(contract.PROMPTS)
    assert cond.embeds.shape == (3, TEXT, 32) and cond.mask is not None
    expected = [len(text_positions(policy, prompt)) for prompt in contract.PROMPTS]
    assert cond.mask.sum(1).tolist() == expected and len(set(expected)) == 3
    assert [int(mask.sum()) for mask in cond.mask[:, : min(expected)]] == [min(expected)] * 3


def test_the_instruction_is_part_of_an_embedding_on_disk(folder: Path, tmp_path: Path) -> None:
    cached = {"embedding_cache": str(tmp_path)}
    instructed = build(folder, **cached).encode(contract.PROMPTS)
    bare = build(folder, complex_human_instruction=None, **cached).encode(contract.PROMPTS)
    assert not torch.equal(instructed.embeds, bare.embeds)


def test_attention_is_the_cross_attention(folder: Path) -> None:
    policy = look(folder)
    names = [name for name, _ in policy.attention_layers()]
    assert names == ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"]
    contract.assert_every_attention_is_a_layer(policy, 2)


@pytest.mark.parametrize("tokens", ["image_to_text", "image_to_all"])
def test_entropy(folder: Path, tokens: Any) -> None:
    policy = look(folder, guidance_scale=2.0 if tokens == "image_to_all" else 1.0)

    def positions(
        layer: str, queries: int, keys: int, mask: Tensor
    ) -> tuple[Sequence[int], Sequence[int]]:
        assert (queries, keys) == (64, TEXT)
        return range(64), range(int(mask.sum()))

    contract.assert_recorded_entropy_is_the_explicit_softmax(policy, tokens, positions)


def test_adapters_are_a_users_lora(folder: Path, tmp_path: Path) -> None:
    contract.assert_adapters_are_a_users_lora(partial(build, folder), tmp_path)


def test_full_finetuning_is_a_users_pipeline(folder: Path, tmp_path: Path) -> None:
    contract.assert_full_finetuning_is_a_users_pipeline(partial(build, folder), tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 3.0, "negative_prompt": "a star"},
        {"sigma_spacing": "uniform", "complex_human_instruction": None},
        {"full_finetuning": True},
    ],
    ids=str,
)
def test_export_passes_its_check(folder: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    contract.assert_export_passes_its_check(partial(build, folder), tmp_path, **arguments)


def test_first_ratio_is_one(folder: Path) -> None:
    contract.assert_first_ratio_is_one(build(folder, guidance_scale=2.0), FlowSDE(), 0.7)


def test_settings_of_large_models(folder: Path) -> None:
    contract.assert_half_precision_works(partial(build, folder), tolerance=0.2)
    contract.assert_checkpointing_changes_no_gradient(partial(build, folder))
    contract.assert_offload_hides_what_is_idle(partial(build, folder))
    contract.assert_autocast_rounds_no_row_of_text(partial(build, folder, guidance_scale=3.0))


def test_groups_of_adapters(folder: Path) -> None:
    assert len(look(folder).trainable_state_dict()) == 2 * 2 * 8
    for group, layer in (("self_attention", "attn1"), ("cross_attention", "attn2")):
        names = look(folder, lora_targets=[group]).trainable_state_dict()
        assert len(names) == 2 * 2 * 4 and all(f".{layer}." in name for name in names)


def test_bad_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_sequence_length=0"):
        Sana("no/model", max_sequence_length=0)
    with pytest.raises(ValueError, match="multiples of 4 pixels"):
        build(folder, resolution=30)
