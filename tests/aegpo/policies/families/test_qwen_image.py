from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from aegpo.policies.families.qwen_image import QwenImage
from aegpo.sde import FlowSDE

TEXT = 40
# The template leaves nine tokens after a prompt, five of which the tiny tokenizer spells out of
# "assistant"; the prompts have 3 words, 22 and 1.
LENGTHS = [3 + 9, 22 + 9, 1 + 9]


def build(folder: Path, **arguments: Any) -> QwenImage:
    settings = {"lora_rank": 4, "max_sequence_length": TEXT, "resolution": 16, **arguments}
    return QwenImage(str(folder), **settings)


look = contract.shared(build)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_qwen_image import save_tiny_qwen_image

    return save_tiny_qwen_image(tmp_path_factory.mktemp("tiny_qwen_image"))


def clean(folder: Path) -> QwenImagePipeline:
    pipeline = QwenImagePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_rollout_is_the_pipeline(folder: Path, scale: float) -> None:
    policy = look(folder, true_cfg_scale=scale, negative_prompt="a star")
    contract.assert_rollout_is_the_pipeline(policy)


def test_the_pipeline_is_called_with_the_settings(folder: Path) -> None:
    """The images above come from `pipeline_images`; here they come from the bare call."""
    policy = look(folder, true_cfg_scale=3.5)
    pipeline = clean(folder)
    noise = contract.start_noise(policy)
    latents = pipeline._pack_latents(noise, 3, 4, 8, 8)
    images = pipeline(
        contract.PROMPTS,
        negative_prompt=[""] * 3,
        true_cfg_scale=3.5,
        height=16,
        width=16,
        num_inference_steps=3,
        latents=latents,
        output_type="pt",
    ).images
    drawn = contract.draw(policy).images
    assert drawn is not None and (drawn - images).abs().max() <= 1e-4
    torch.testing.assert_close(policy.sigmas(3), pipeline.scheduler.sigmas, rtol=0, atol=1e-6)
    assert policy.sigmas(3)[2] == pytest.approx(0.02, abs=1e-6), "shift_terminal"


def test_guidance_keeps_the_length_of_every_token(folder: Path) -> None:
    policy = look(folder, true_cfg_scale=3.0)
    positive, negative = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    guided = policy.guide(positive, negative)
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            patch = (slice(None), slice(None), slice(row, row + 2), slice(column, column + 2))
            lengths = guided[patch].flatten(1).norm(dim=1), positive[patch].flatten(1).norm(dim=1)
            torch.testing.assert_close(*lengths)
            combined = (negative + 3 * (positive - negative))[patch].flatten(1)
            cosine = torch.cosine_similarity(guided[patch].flatten(1), combined)
            torch.testing.assert_close(cosine, torch.ones(2))


def test_texts_are_padded_and_masked(folder: Path) -> None:
    policy = look(folder)
    cond = policy.encode(contract.PROMPTS)
    assert cond.embeds.shape == (3, TEXT, 32) and cond.mask is not None
    assert cond.mask.sum(1).tolist() == LENGTHS == cond.mask.int().argmin(1).tolist()
    short = look(folder, max_sequence_length=5).encode(contract.PROMPTS)
    assert short.embeds.shape == (3, 5, 32) and short.mask is not None and short.mask.all()


def test_attention_is_seen(folder: Path) -> None:
    policy = look(folder)
    names = [name for name, _ in policy.attention_layers()]
    assert names == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
    contract.assert_every_attention_is_a_layer(policy, 2)


@pytest.mark.parametrize(
    "tokens", ["image_to_text", "image_to_image", "image_to_all", "text_to_image"]
)
def test_entropy(folder: Path, tokens: Any) -> None:
    policy = look(folder, true_cfg_scale=2.0 if tokens == "image_to_all" else 1.0)

    def positions(
        layer: str, queries: int, keys: int, mask: Tensor
    ) -> tuple[Sequence[int], Sequence[int]]:
        assert queries == keys == TEXT + 16
        text, image = list(range(int(mask.sum()))), list(range(TEXT, TEXT + 16))
        sets = {"text": text, "image": image, "all": [*text, *image]}
        asks, looks = tokens.split("_to_")
        return sets[asks], sets[looks]

    contract.assert_recorded_entropy_is_the_explicit_softmax(policy, tokens, positions)


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
        {"true_cfg_scale": 3.0},
        {"true_cfg_scale": 3.0, "negative_prompt": "a star"},
        {"full_finetuning": True},
    ],
    ids=str,
)
def test_export_passes_its_check(folder: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    contract.assert_export_passes_its_check(partial(build, folder), tmp_path, **arguments)


def test_first_ratio_is_one(folder: Path) -> None:
    contract.assert_first_ratio_is_one(build(folder, true_cfg_scale=2.0), FlowSDE(), 0.7)


def test_settings_of_large_models(folder: Path) -> None:
    contract.assert_half_precision_works(partial(build, folder), tolerance=0.2)
    contract.assert_checkpointing_changes_no_gradient(partial(build, folder))
    contract.assert_offload_hides_what_is_idle(partial(build, folder))
    contract.assert_autocast_rounds_no_row_of_text(partial(build, folder, true_cfg_scale=3.0))


def test_adapters_sit_in_both_streams(folder: Path) -> None:
    assert len(look(folder).trainable_state_dict()) == 2 * 2 * 8
    names = look(folder, lora_targets=["feed_forward"]).trainable_state_dict()
    assert len(names) == 2 * 2 * 4 and all("_mlp." in name for name in names)


def test_sizes(folder: Path) -> None:
    assert look(folder, resolution=None).latent_shape == (4, 128, 128)
    assert look(folder).latent_shape == (4, 8, 8)
    with pytest.raises(ValueError, match="multiples of 4 pixels"):
        look(folder, resolution=18)


@pytest.mark.parametrize(
    "argument", [{"true_cfg_scale": 0.5}, {"max_sequence_length": 0}, {"max_sequence_length": 1025}]
)
def test_bad_arguments_are_refused_before_loading(argument: dict[str, Any]) -> None:
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        QwenImage("no/model", **argument)


def test_guidance_distilled_models_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_pretrained = QwenImageTransformer2DModel.from_pretrained

    def distilled(*args: Any, **kwargs: Any) -> QwenImageTransformer2DModel:
        model = from_pretrained(*args, **kwargs)
        model.register_to_config(guidance_embeds=True)
        return model

    monkeypatch.setattr(QwenImageTransformer2DModel, "from_pretrained", distilled)
    with pytest.raises(ValueError, match="is guidance-distilled"):
        build(folder)
