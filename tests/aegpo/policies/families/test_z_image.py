from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from aegpo.policies.families.z_image import ZImage
from aegpo.sde import FlowSDE

TEXT = 48
# The chat template has three tokens before a prompt and nine after it, five of which the tiny
# tokenizer spells out of "assistant"; the prompts have 3 words, 22 and 1. One caption passes 32.
LENGTHS = [3 + 12, 22 + 12, 1 + 12]


def build(folder: Path, **arguments: Any) -> ZImage:
    settings = {"lora_rank": 4, "max_sequence_length": TEXT, "resolution": 16, **arguments}
    return ZImage(str(folder), **settings)


look = contract.shared(build)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_z_image import save_tiny_z_image

    return save_tiny_z_image(tmp_path_factory.mktemp("tiny_z_image"))


def clean(folder: Path) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("scale", "limit", "resolution"), [(0.0, 0.0, 16), (3.5, 0.0, 32), (3.5, 1.0, 16)]
)
def test_rollout_is_the_pipeline(folder: Path, scale: float, limit: float, resolution: int) -> None:
    policy = look(
        folder,
        guidance_scale=scale,
        cfg_normalization=limit,
        negative_prompt="a star",
        resolution=resolution,
    )
    contract.assert_rollout_is_the_pipeline(policy)


def test_guidance_scale_is_the_pipelines_own(folder: Path) -> None:
    """The images above come from `pipeline_images`; here they come from the bare call."""
    pipeline = clean(folder)
    for scale in (0.0, 0.5, 4.0):
        policy = look(folder, guidance_scale=scale)
        assert policy.num_evaluations_per_sample == (2 if scale else 1)
        images = pipeline(
            list(contract.PROMPTS),
            guidance_scale=scale,
            height=16,
            width=16,
            num_inference_steps=2,
            latents=contract.start_noise(policy),
            output_type="pt",
            max_sequence_length=TEXT,
        ).images
        drawn = contract.draw(policy, 2).images
        assert drawn is not None and (drawn - images).abs().max() <= 1e-4
    torch.testing.assert_close(policy.sigmas(2), pipeline.scheduler.sigmas, rtol=0, atol=1e-6)


def test_normalization_limits_the_norm(folder: Path) -> None:
    positive, negative = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    free = look(folder, guidance_scale=3.0).guide(positive, negative)
    torch.testing.assert_close(free, positive + 3 * (positive - negative))
    limited = look(folder, guidance_scale=3.0, cfg_normalization=0.5).guide(positive, negative)
    for row in range(2):
        assert limited[row].norm() == pytest.approx(0.5 * float(positive[row].norm()), rel=1e-5)
    loose = look(folder, guidance_scale=3.0, cfg_normalization=100.0).guide(positive, negative)
    assert torch.equal(loose, free)


def test_texts_are_padded(folder: Path) -> None:
    policy = look(folder)
    prompts = list(contract.PROMPTS)
    cond = policy.encode(prompts)
    assert prompts == contract.PROMPTS, "the pipeline alone would change the list"
    assert cond.embeds.shape == (3, TEXT, 32) and cond.mask is not None
    assert cond.mask.sum(1).tolist() == LENGTHS == cond.mask.int().argmin(1).tolist()


def test_attention_is_seen(folder: Path) -> None:
    policy = look(folder)
    names = [name for name, _ in policy.attention_layers()]
    modules = ("noise_refiner.0", "context_refiner.0", "layers.0", "layers.1")
    assert names == [f"{module}.attention" for module in modules]
    contract.assert_every_attention_is_a_layer(policy, 4)


@pytest.mark.parametrize("resolution", [16, 32], ids=["padded", "whole"])
@pytest.mark.parametrize(
    "tokens", ["image_to_text", "image_to_image", "image_to_all", "text_to_image"]
)
def test_entropy(folder: Path, tokens: Any, resolution: int) -> None:
    """With guidance and without, with padded image tokens and without."""
    guidance = 2.0 if tokens == "image_to_all" else 0.0
    policy = look(folder, guidance_scale=guidance, resolution=resolution)
    num_image, padded = (16, 32) if resolution == 16 else (64, 64)

    def positions(
        layer: str, queries: int, keys: int, mask: Tensor
    ) -> tuple[Sequence[int], Sequence[int]] | None:
        image = list(range(num_image))
        text = list(range(padded, padded + int(mask.sum())))
        if layer.startswith("context_refiner"):
            return None
        if layer.startswith("noise_refiner"):
            assert keys == padded
            return None if "text" in tokens else (image, image)
        assert queries == keys == padded + 64, "the longest caption has 34 tokens, padded to 64"
        sets = {"text": text, "image": image, "all": [*image, *text]}
        asks, looks = tokens.split("_to_")
        return sets[asks], sets[looks]

    contract.assert_recorded_entropy_is_the_explicit_softmax(policy, tokens, positions)


def test_calls_are_as_long_as_their_longest_caption(folder: Path) -> None:
    """In chunks of one row, calls differ in length; the recorded entropy does not."""
    recorder = contract.EntropyRecorder(tokens="image_to_text", rows=None)
    curves = []
    for max_batch in (64, 1):
        policy = build(folder, max_batch=max_batch, resolution=32)
        with recorder.record(policy) as recording, contract.captured(policy) as calls:
            contract.draw(policy, 2, observer=recording)
        curves.append(recording.curve())
        lengths = {query.shape[2] for _, query, _, _ in calls}
        assert (64 + 32 in lengths) == (max_batch == 1) and 64 + 64 in lengths
    torch.testing.assert_close(*curves, rtol=0, atol=1e-4)


def test_adapters_are_a_users_lora(folder: Path, tmp_path: Path) -> None:
    contract.assert_adapters_are_a_users_lora(
        partial(build, folder), tmp_path, lora_targets=["attention", "feed_forward"]
    )


def test_full_finetuning_is_a_users_pipeline(folder: Path, tmp_path: Path) -> None:
    contract.assert_full_finetuning_is_a_users_pipeline(partial(build, folder), tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 3.5, "cfg_normalization": 1.0, "negative_prompt": "a star"},
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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"guidance_scale": -1.0}, r"guidance_scale=-1\.0; Z-Image takes 0"),
        ({"cfg_normalization": -1.0}, r"cfg_normalization=-1\.0"),
        ({"max_sequence_length": 0}, "max_sequence_length=0"),
        ({"max_sequence_length": 65}, "this model has positions for 64"),
        ({"resolution": 36}, "multiples of 4 pixels up to 32"),
    ],
)
def test_bad_arguments(folder: Path, argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folder, **argument)


def test_longest_caption_has_positions(folder: Path) -> None:
    policy = build(folder, max_sequence_length=64)
    cond = policy.encode([" ".join(["a red star"] * 30)])
    assert cond.mask is not None and cond.mask.all()
    with torch.no_grad():
        assert policy(contract.start_noise(policy)[:1], torch.ones(1), cond).isfinite().all()
