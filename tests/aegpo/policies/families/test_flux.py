from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from jsonargparse import ArgumentParser
from tiny_flux import tiny_flux, tiny_flux2
from torch import Tensor

from aegpo.policies.families.flux import Flux
from aegpo.sde import FlowSDE

TEXT, IMAGE = 12, 16  # T5 tokens and patches
GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "a star"}
LAYERS = [
    f"{kind}.{block}.attn"
    for kind in ("transformer_blocks", "single_transformer_blocks")
    for block in range(2)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `tiny_flux`, to be read only."""
    path = tmp_path_factory.mktemp("tiny_flux")
    tiny_flux().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def schnell_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `tiny_flux` without guidance embedding, to be read only."""
    path = tmp_path_factory.mktemp("tiny_schnell")
    tiny_flux(guidance_embeds=False).save_pretrained(path)
    return path


def build(folder: Path, **arguments: Any) -> Flux:
    arguments = {"lora_rank": 4, "max_sequence_length": TEXT, "resolution": 16, **arguments}
    return Flux(str(folder), **arguments)


look = contract.shared(build)


def builder(folder: Path) -> contract.Build:
    return lambda **arguments: build(folder, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"guidance_scale": 7.0}, GUIDED, {"sigma_spacing": "scheduler", "max_batch": 2}],
    ids=["default", "distilled", "classifier_free", "scheduler"],
)
def test_rollout_is_the_pipeline(folder: Path, arguments: dict[str, Any]) -> None:
    contract.assert_rollout_is_the_pipeline(look(folder, **arguments))


def test_rollout_is_the_pipeline_of_schnell(schnell_folder: Path) -> None:
    contract.assert_rollout_is_the_pipeline(look(schnell_folder))


def test_either_guidance_moves_the_prediction(folder: Path) -> None:
    default = build(folder)
    latents, sigma, cond = contract.inputs(default)
    with torch.no_grad(), default.evaluations.charge("probe"):
        base = default(latents, sigma, cond)
        contract.assert_close(build(folder, guidance_scale=3.5)(latents, sigma, cond), base, 0)
        stronger = build(folder, guidance_scale=7.0)(latents, sigma, cond)
        assert (stronger - base).abs().max() > 1e-3
        policy = build(folder, **GUIDED)
        negative = policy.encode(contract.PROMPTS)
        guided = policy(latents, sigma, negative)
        star = default.predict(latents, sigma, default.encode(["a star"] * 3))
    contract.assert_close(guided, star + 3 * (base - star), 1e-5)
    assert (guided - base).abs().max() > 1e-3
    assert default.evaluations.counts["probe"] == 3 and policy.num_evaluations_per_sample == 2


def test_every_attention_is_a_layer(folder: Path) -> None:
    policy = look(folder)
    assert [name for name, _ in policy.attention_layers()] == LAYERS
    policy.encode(contract.PROMPTS)
    contract.assert_every_attention_is_a_layer(policy, 4)


@pytest.mark.parametrize(
    ("tokens", "arguments"),
    [
        *(("image_to_all", {}), ("image_to_image", {}), ("text_to_image", {})),
        ("image_to_text", GUIDED),
    ],
)
def test_recorded_entropy(folder: Path, tokens: str, arguments: dict[str, Any]) -> None:
    asks, _, looks = tokens.partition("_to_")

    def positions(
        layer: str, queries: int, keys: int, mask: Tensor
    ) -> tuple[Sequence[int], Sequence[int]] | None:
        if layer not in LAYERS:
            return None
        assert queries == keys == TEXT + IMAGE
        text = mask.nonzero().flatten().tolist()
        image = list(range(TEXT, TEXT + IMAGE))
        chosen = {"text": text, "image": image, "all": [*text, *image]}
        return chosen[asks], chosen[looks]

    policy = look(folder, **arguments)
    contract.assert_recorded_entropy_is_the_explicit_softmax(policy, tokens, positions)


def test_mask_marks_t5s_words_and_its_end(folder: Path) -> None:
    cond = look(folder, **GUIDED).encode(["a red circle", "a", ""])
    assert cond.mask is not None and cond.pooled is not None and cond.negative is not None
    assert cond.mask.sum(1).tolist() == [4, 2, 1], "words, then the end token"
    assert cond.mask.int().argmin(1).tolist() == [4, 2, 1], "padding comes last"
    assert cond.embeds.shape == (3, TEXT, 24) and cond.pooled.shape == (3, 16)


def test_adapters_are_a_users_lora(folder: Path, tmp_path: Path) -> None:
    contract.assert_adapters_are_a_users_lora(
        builder(folder), tmp_path, lora_targets=["attention", "feed_forward", "single"]
    )


def test_full_finetuning_is_a_users_pipeline(folder: Path, tmp_path: Path) -> None:
    contract.assert_full_finetuning_is_a_users_pipeline(builder(folder), tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [{"guidance_scale": 7.0, "sigma_spacing": "scheduler"}, GUIDED, {"full_finetuning": True}],
    ids=str,
)
def test_export_passes_its_check(folder: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    contract.assert_export_passes_its_check(builder(folder), tmp_path, **arguments)


@pytest.mark.parametrize("arguments", [{}, GUIDED], ids=["plain", "guided"])
def test_first_ratio_is_one(folder: Path, arguments: dict[str, Any]) -> None:
    contract.assert_first_ratio_is_one(build(folder, **arguments), FlowSDE(), 0.7)


def test_settings_of_large_models(folder: Path) -> None:
    # The transformer multiplies guidance and noise level by 1,000 in half precision, where 3,500
    # is 3,504; how near it comes to the pipeline, which does so too, is tested below.
    contract.assert_half_precision_works(builder(folder), tolerance=0.2)
    contract.assert_checkpointing_changes_no_gradient(builder(folder))
    contract.assert_offload_hides_what_is_idle(builder(folder))
    contract.assert_autocast_rounds_no_row_of_text(partial(build, folder, **GUIDED))


def test_half_precision_draws_the_half_precision_pipeline(folder: Path) -> None:
    # The pipeline keeps its latents in bfloat16 too, hence the tolerance.
    policy = build(folder, dtype="bfloat16")
    images = contract.pipeline_images(policy, policy.load_clean_pipeline())
    contract.assert_close(contract.draw(policy).images, images, 0.02)


def test_lora_groups(folder: Path) -> None:
    def layers(*groups: str) -> set[str]:
        names = look(folder, lora_targets=list(groups)).trainable_state_dict()
        return {name.removeprefix("transformer.").split(".lora_")[0] for name in names}

    double, single = (
        [f"{kind}.{block}" for block in range(2)]
        for kind in ("transformer_blocks", "single_transformer_blocks")
    )
    queries = {f"{block}.attn.to_{part}" for block in single for part in "qkv"}
    attention = {
        f"{block}.attn.{layer}"
        for block in double
        for layer in (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        )
    }
    feed_forward = {
        f"{block}.{part}.net.{layer}"
        for block in double
        for part in ("ff", "ff_context")
        for layer in ("0.proj", "2")
    }
    hidden = {f"{block}.proj_mlp" for block in single}
    assert layers("attention") == attention | queries
    assert layers("feed_forward") == feed_forward | hidden
    # The transformer's last layer is called proj_out, too.
    assert layers("single") == queries | hidden | {f"{block}.proj_out" for block in single}


def test_sizes(folder: Path) -> None:
    assert look(folder, resolution=None).latent_shape == (4, 128, 128)
    policy = look(folder, resolution=128)
    # 1,024 tokens: FLUX's published 0.5 to 1.15 between 256 and 4,096 tokens.
    assert policy.shift_mu(10) == pytest.approx(0.63)
    u = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    grown = torch.tensor(0.63).exp() * u
    torch.testing.assert_close(policy.sigmas(4), grown / (grown + 1 - u))
    with pytest.raises(ValueError, match="multiples of 4 pixels"):
        look(folder, resolution=18)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_sequence_length": 0}, "max_sequence_length=0; it must be 1 to 512"),
        ({"max_sequence_length": 513}, "max_sequence_length=513"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0; it must be 0 or more"),
        ({"true_cfg_scale": 0.5}, "guidance_scale=0.5; it must be 1"),
        ({"sigma_spacing": "linear"}, "choose scheduler or uniform"),
        ({"shift": 3.0}, "shift=3.0: the scheduler of this model shifts by resolution"),
        ({"lora_targets": ["to_qkv"]}, "'to_qkv' matches no linear layer"),
    ],
)
def test_bad_arguments(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folder, **arguments)


def test_guidance_without_an_embedding_is_refused(schnell_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no guidance embedding .* leave guidance_scale out"):
        build(schnell_folder, guidance_scale=3.5)


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    tiny_flux2().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a Flux2Pipeline; give .* saved FluxPipeline"):
        build(tmp_path)


def test_the_command_line_offers_what_diffusers_calls_it() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Flux, "policy")
    defaults = vars(parser.get_defaults().policy)
    assert defaults["sigma_spacing"] == "uniform" and defaults["max_sequence_length"] == 512
    assert {"guidance_scale", "true_cfg_scale", "negative_prompt", "lora_rank"} <= defaults.keys()
    assert "distilled_guidance" not in defaults
