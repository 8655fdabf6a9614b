"""Stable Diffusion 1.5 as a policy, against the pipeline's own images under DDIM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from diffusers import StableDiffusionPipeline
from policy_contract import PROMPTS
from tiny_unet import save_tiny_sd15
from torch import Tensor

from aegpo.entropy import EntropyRecorder
from aegpo.policies.families.stable_diffusion import StableDiffusion
from aegpo.sde import DDIM, DanceSDE, FlowSDE


def build(folder: Path, **arguments: Any) -> StableDiffusion:
    return StableDiffusion(str(folder), **{"lora_rank": 4, **arguments})


shared = contract.shared(build)


@pytest.fixture
def tiny(tiny_sd15_folder: Path) -> Any:
    return partial(build, tiny_sd15_folder)


@pytest.fixture
def look(tiny_sd15_folder: Path) -> Any:
    """As `tiny`, for tests that change nothing."""
    return partial(shared, tiny_sd15_folder)


def positions(
    tokens: str, layer: str, queries: int, keys: int, mask: Tensor
) -> tuple[Sequence[int], Sequence[int]] | None:
    """By hand: attn1 is image over image, attn2 image over text."""
    if layer.endswith("attn2"):
        real = mask.nonzero().flatten().tolist()
        return None if tokens == "image_to_image" else (range(queries), real)
    assert queries == keys and queries in (256, 64, 16)
    return None if tokens == "image_to_text" else (range(queries), range(keys))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_rollout_is_the_pipeline(look: Any, guidance_scale: float) -> None:
    contract.assert_rollout_is_the_pipeline(
        look(guidance_scale=guidance_scale, negative_prompt="green"), num_steps=5
    )


@pytest.mark.parametrize(
    ("prediction_type", "set_alpha_to_one"), [("v_prediction", False), ("sample", True)]
)
def test_other_predictions_and_an_end_at_zero(
    tmp_path: Path, prediction_type: str, set_alpha_to_one: bool
) -> None:
    save_tiny_sd15(tmp_path, prediction_type=prediction_type, set_alpha_to_one=set_alpha_to_one)
    policy = build(tmp_path)
    assert (policy.sigmas(3)[-1] == 0) == set_alpha_to_one
    contract.assert_rollout_is_the_pipeline(policy)


def test_another_resolution(tiny: Any) -> None:
    policy = tiny(resolution=40, guidance_scale=3.0)  # 20, 10 and 5 latents wide
    assert policy.latent_shape == (4, 20, 20)
    contract.assert_rollout_is_the_pipeline(policy)
    layout = policy.token_layout(policy.encode(PROMPTS))
    assert (layout.num_image, layout.image_sizes) == (400, (100, 25))
    odd = tiny(resolution=36)  # 18, 9 and 5: an odd level is rounded up
    assert odd.token_layout(odd.encode(PROMPTS)).image_sizes == (81, 25)
    with EntropyRecorder(rows=4).record(odd) as recording:
        contract.draw(odd, 2, observer=recording)
    assert len(recording.layer_names) == 14


def test_every_attention_is_a_layer(look: Any) -> None:
    # Self and cross: one in each of two blocks down and in the middle, two in each of two up.
    contract.assert_every_attention_is_a_layer(look(), 2 * (1 + 1 + 1 + 2 + 2))


@pytest.mark.parametrize(
    ("tokens", "guidance_scale"),
    [("image_to_text", 3.0), ("image_to_image", 1.0), ("image_to_all", 3.0)],
)
def test_recorded_entropy(look: Any, tokens: str, guidance_scale: float) -> None:
    contract.assert_recorded_entropy_is_the_explicit_softmax(
        look(guidance_scale=guidance_scale), tokens, partial(positions, tokens)
    )


def test_text_never_asks(look: Any) -> None:
    policy = look()
    with (
        pytest.raises(ValueError, match="no attention of this model has text queries"),
        EntropyRecorder(tokens="text_to_image").record(policy) as recording,
    ):
        contract.draw(policy, 2, observer=recording)


def test_the_mask_marks_start_words_and_end(look: Any) -> None:
    mask = look().encode(["a red circle", "two blue stars and", "a"]).mask
    assert mask.shape == (3, 16)
    assert mask.sum(1).tolist() == [5, 6, 3] and mask.int().argmin(1).tolist() == [5, 6, 3]


def test_adapters(tiny: Any, tmp_path: Path) -> None:
    contract.assert_adapters_are_a_users_lora(tiny, tmp_path)
    names = tiny().trainable_state_dict()
    assert len(names) == 14 * 4 * 2 and all(".attn" in name for name in names)
    both = tiny(lora_targets=["attention", "feed_forward"]).trainable_state_dict()
    assert len(both) == 14 * 4 * 2 + 7 * 2 * 2
    with pytest.raises(ValueError, match="LoRA target 'proj' matches no linear layer"):
        tiny(lora_targets=["proj"])  # convolutions in SD 1.5


def test_full_finetuning(tiny: Any, tmp_path: Path) -> None:
    contract.assert_full_finetuning_is_a_users_pipeline(tiny, tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [{"guidance_scale": 3.0, "negative_prompt": "green"}, {"full_finetuning": True}],
    ids=str,
)
def test_export_passes_its_check(tiny: Any, tmp_path: Path, arguments: dict[str, Any]) -> None:
    contract.assert_export_passes_its_check(tiny, tmp_path, **arguments)


@pytest.mark.parametrize(("sde", "eta"), [(DDIM(), 1.0), (FlowSDE(), 0.3), (DanceSDE(), 0.3)])
def test_the_first_ratio_is_one(tiny: Any, sde: Any, eta: float) -> None:
    contract.assert_first_ratio_is_one(tiny(guidance_scale=2.0), sde, eta)


def test_precisions(tiny: Any) -> None:
    contract.assert_half_precision_works(tiny)
    contract.assert_autocast_rounds_no_row_of_text(partial(tiny, guidance_scale=3.0))


def test_gradient_checkpointing(tiny: Any) -> None:
    contract.assert_checkpointing_changes_no_gradient(tiny)


def test_offload(tiny: Any) -> None:
    contract.assert_offload_hides_what_is_idle(tiny)


def test_the_safety_checker_is_never_loaded(tiny_sd15_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_sd15_folder, tmp_path / "checked"))
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    for name in ("image_encoder", "requires_safety_checker"):  # as in the published index
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    policy = build(folder, full_finetuning=True)
    assert policy.pipeline.safety_checker is None
    policy.save_pretrained(tmp_path / "saved")
    saved = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert saved.safety_checker is None and not saved.config.requires_safety_checker


def test_what_cannot_be_driven_is_said_in_one_line(tiny_sd15_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_sd15_folder, tmp_path / "distilled"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"time_cond_proj_dim": 8}))
    with pytest.raises(ValueError, match="distilled to take guidance as an input"):
        build(folder)


def test_the_pipelines_scheduler_is_left_alone(look: Any) -> None:
    policy = look()
    pipeline = policy.load_clean_pipeline()
    sampler = policy.sampling_scheduler(pipeline.scheduler)
    assert type(sampler).__name__ == "DDIMScheduler"
    assert (
        type(policy.pipeline.scheduler).__name__
        == "PNDMScheduler"
        == (pipeline.config["scheduler"][1])
    )


def test_latents_at_both_ends_are_the_diffusions(look: Any) -> None:
    policy = look()
    sigmas = policy.sigmas(10)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = 1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = kept.cumprod(0)
    scale = kept.sqrt() + (1 - kept).sqrt()
    start = policy.initial_latents(noise, float(sigmas[0]))
    torch.testing.assert_close(start, noise / scale[901].float(), rtol=1e-5, atol=1e-6)
    end = policy.clean_latents(noise)
    torch.testing.assert_close(end, noise * scale[0].float(), rtol=1e-5, atol=1e-6)
