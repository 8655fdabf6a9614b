"""Stable Diffusion XL as a policy, against the pipeline's own images under DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from policy_contract import PROMPTS
from tiny_unet import save_tiny_sdxl
from torch import Tensor

from aegpo.policies.families.stable_diffusion_xl import StableDiffusionXL
from aegpo.sde import DDIM


def build(folder: Path, **arguments: Any) -> StableDiffusionXL:
    return StableDiffusionXL(str(folder), **{"lora_rank": 4, **arguments})


shared = contract.shared(build)


@pytest.fixture
def tiny(tiny_sdxl_folder: Path) -> Any:
    return partial(build, tiny_sdxl_folder)


@pytest.fixture
def look(tiny_sdxl_folder: Path) -> Any:
    """As `tiny`, for tests that change nothing."""
    return partial(shared, tiny_sdxl_folder)


def positions(
    tokens: str, layer: str, queries: int, keys: int, mask: Tensor
) -> tuple[Sequence[int], Sequence[int]] | None:
    """By hand: attn1 is image over image, attn2 image over text."""
    if layer.endswith("attn2"):
        real = mask.nonzero().flatten().tolist()
        return None if tokens == "image_to_image" else (range(queries), real)
    assert queries == keys == 64
    return None if tokens == "image_to_text" else (range(queries), range(keys))


@pytest.mark.parametrize("guided", [{}, {"guidance_scale": 4.0}])
def test_a_rollout_is_the_pipeline(look: Any, guided: Any) -> None:
    contract.assert_rollout_is_the_pipeline(look(**guided), num_steps=5)


@pytest.mark.parametrize("negative_prompt", ["", "green"])
def test_the_negative_row(tmp_path: Path, negative_prompt: str) -> None:
    """Zeros only where the pipeline was trained with them and no text is given."""
    for force_zeros in (True, False):
        save_tiny_sdxl(tmp_path, force_zeros=force_zeros)
        policy = build(tmp_path, guidance_scale=4.0, negative_prompt=negative_prompt)
        negative = policy.encode(PROMPTS).negative
        zeros = not negative_prompt and force_zeros
        assert bool((negative.embeds == 0).all()) == zeros == bool((negative.pooled == 0).all())
        contract.assert_rollout_is_the_pipeline(policy)


def test_resolution_is_told_to_the_unet(tiny: Any) -> None:
    policy = tiny(resolution=24)
    contract.assert_rollout_is_the_pipeline(policy)
    given = policy.unet_inputs(policy.encode(PROMPTS))["added_cond_kwargs"]
    assert given["time_ids"].tolist() == [[24, 24, 0, 0, 24, 24]] * 3
    latents, sigma, cond = contract.inputs(policy)
    with torch.no_grad():
        here = policy(latents, sigma, cond)
        policy.pipeline.vae_scale_factor = 4  # the same latents of an image twice as large
        assert (policy(latents, sigma, cond) - here).abs().max() > 1e-5


def test_every_attention_is_a_layer(look: Any) -> None:
    # Two transformers of two layers up, one in two places down, one in the middle; self and cross.
    contract.assert_every_attention_is_a_layer(look(), 2 * (4 + 2 + 2))


@pytest.mark.parametrize("tokens", ["image_to_text", "image_to_image", "image_to_all"])
def test_recorded_entropy(look: Any, tokens: str) -> None:
    contract.assert_recorded_entropy_is_the_explicit_softmax(
        look(guidance_scale=3.0), tokens, partial(positions, tokens)
    )


def test_the_mask_follows_the_longer_tokenization(look: Any) -> None:
    policy = look()
    lengths = [
        [min(len(tokenizer(prompt).input_ids), 16) for prompt in PROMPTS]
        for tokenizer in (policy.pipeline.tokenizer, policy.pipeline.tokenizer_2)
    ]
    assert lengths[0][0] == 5 < lengths[1][0], "the second tokenizer spells circle"
    mask = policy.encode(PROMPTS).mask
    assert mask.sum(1).tolist() == [max(pair) for pair in zip(*lengths, strict=True)]


def test_adapters(tiny: Any, tmp_path: Path) -> None:
    contract.assert_adapters_are_a_users_lora(
        tiny, tmp_path, lora_targets=["attention", "feed_forward", "proj"]
    )


def test_full_finetuning(tiny: Any, tmp_path: Path) -> None:
    contract.assert_full_finetuning_is_a_users_pipeline(tiny, tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"guidance_scale": 3.0, "dtype": "float16"}, {"full_finetuning": True}],
    ids=str,
)
def test_export_passes_its_check(tiny: Any, tmp_path: Path, arguments: dict[str, Any]) -> None:
    contract.assert_export_passes_its_check(tiny, tmp_path, **arguments)


def test_the_first_ratio_is_one(tiny: Any) -> None:
    contract.assert_first_ratio_is_one(tiny(guidance_scale=2.0), DDIM(), 1.0)


def test_precision_memory_and_offload(tiny: Any) -> None:
    contract.assert_half_precision_works(tiny)
    contract.assert_autocast_rounds_no_row_of_text(partial(tiny, guidance_scale=3.0))
    contract.assert_checkpointing_changes_no_gradient(tiny)
    contract.assert_offload_hides_what_is_idle(tiny)


def test_a_half_precision_decoder_is_upcast_where_it_asks_for_it(tiny: Any) -> None:
    policy = tiny(dtype="float16")
    assert policy.vae.dtype == torch.float32 and policy.pipeline.unet.dtype == torch.float16
