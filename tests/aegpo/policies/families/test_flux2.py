from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from jsonargparse import ArgumentParser
from tiny_flux import tiny_flux2, tiny_flux2_klein
from torch import Tensor

from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.flux2 import Flux2, Flux2Klein
from aegpo.sde import FlowSDE

TEXT, IMAGE = 64, 16  # tokens of the chat and patches
FAMILIES = {"dev": Flux2, "klein": Flux2Klein}
LAYERS = [
    f"{kind}.{block}.attn"
    for kind in ("transformer_blocks", "single_transformer_blocks")
    for block in range(2)
]
both = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved tiny pipelines, to be read only."""
    pipelines = {
        "dev": tiny_flux2(),
        "klein": tiny_flux2_klein(),
        "distilled": tiny_flux2_klein(is_distilled=True),
    }
    paths = {name: tmp_path_factory.mktemp(name) for name in pipelines}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(paths[name])
    return paths


def build(folders: dict[str, Path], family: str, **arguments: Any) -> DiffusersPolicy:
    arguments = {"lora_rank": 4, "max_sequence_length": TEXT, "resolution": 16, **arguments}
    return FAMILIES.get(family, Flux2Klein)(str(folders[family]), **arguments)


look = contract.shared(build)


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("dev", {}),
        ("dev", {"guidance_scale": 2.0, "sigma_spacing": "scheduler"}),
        ("klein", {}),
        ("klein", {"guidance_scale": 1.0}),
        ("klein", {"guidance_scale": 3.0, "negative_prompt": "a star"}),
        ("distilled", {}),
    ],
)
def test_rollout_is_the_pipeline(
    folders: dict[str, Path], family: str, arguments: dict[str, Any]
) -> None:
    contract.assert_rollout_is_the_pipeline(look(folders, family, **arguments))


@both
def test_every_attention_is_a_layer(folders: dict[str, Path], family: str) -> None:
    policy = look(folders, family)
    assert [name for name, _ in policy.attention_layers()] == LAYERS
    policy.encode(contract.PROMPTS)
    contract.assert_every_attention_is_a_layer(policy, 4)


@pytest.mark.parametrize(
    ("family", "tokens"),
    [("dev", "image_to_all"), ("dev", "text_to_image"), ("klein", "image_to_text")],
)
def test_recorded_entropy(folders: dict[str, Path], family: str, tokens: str) -> None:
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

    policy = look(folders, family)
    contract.assert_recorded_entropy_is_the_explicit_softmax(policy, tokens, positions)


def test_mask_marks_the_chat_on_whichever_side_the_padding_is(folders: dict[str, Path]) -> None:
    dev, klein = (look(folders, family).encode(["a red circle", "a"]) for family in FAMILIES)
    assert dev.mask is not None and klein.mask is not None and dev.pooled is None
    assert dev.embeds.shape == klein.embeds.shape == (2, TEXT, 24)
    # Mistral pads on the left, before 23 words of system message, two roles and the prompt.
    words = len(look(folders, "dev").pipeline.system_message.split())
    assert dev.mask.sum(1).tolist() == [words + 2 + 3, words + 2 + 1]
    assert dev.mask[:, -1].all() and not dev.mask[:, 0].any()
    # Qwen pads on the right, after bytes between three tokens of the template.
    assert klein.mask.sum(1).tolist() == [3 + len("a red circle"), 3 + 1]
    assert klein.mask[:, 0].all() and not klein.mask[:, -1].any()


def test_guidance_as_each_model_has_it(folders: dict[str, Path]) -> None:
    dev, klein = look(folders, "dev"), look(folders, "klein")
    assert dev.num_evaluations_per_sample == 1 and klein.num_evaluations_per_sample == 2
    assert klein.guidance_scale == 4 and look(folders, "distilled").guidance_scale == 1
    latents, sigma, cond = contract.inputs(dev)
    with torch.no_grad():
        base = dev(latents, sigma, cond)
        assert torch.equal(look(folders, "dev", guidance_scale=4.0)(latents, sigma, cond), base)
        stronger = look(folders, "dev", guidance_scale=8.0)(latents, sigma, cond)
        assert (stronger - base).abs().max() > 1e-3


@both
def test_adapters_are_a_users_lora(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    contract.assert_adapters_are_a_users_lora(
        lambda **arguments: build(folders, family, **arguments),
        tmp_path,
        lora_targets=["attention", "feed_forward"],
    )


def test_full_finetuning_is_a_users_pipeline(folders: dict[str, Path], tmp_path: Path) -> None:
    contract.assert_full_finetuning_is_a_users_pipeline(
        lambda **arguments: build(folders, "klein", **arguments), tmp_path
    )


@pytest.mark.parametrize(
    ("family", "arguments"),
    [("dev", {}), ("klein", {"guidance_scale": 3.0}), ("klein", {"full_finetuning": True})],
)
def test_export_passes_its_check(
    folders: dict[str, Path], family: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    contract.assert_export_passes_its_check(
        lambda **more: build(folders, family, **more), tmp_path, **arguments
    )


@both
def test_first_ratio_is_one(folders: dict[str, Path], family: str) -> None:
    contract.assert_first_ratio_is_one(build(folders, family), FlowSDE(), 0.7)


@both
def test_settings_of_large_models(folders: dict[str, Path], family: str) -> None:
    def builder(**arguments: Any) -> DiffusersPolicy:
        return build(folders, family, **arguments)

    contract.assert_half_precision_works(builder, tolerance=0.2)
    contract.assert_checkpointing_changes_no_gradient(builder)
    contract.assert_offload_hides_what_is_idle(builder)


def test_lora_groups(folders: dict[str, Path]) -> None:
    def layers(*groups: str) -> set[str]:
        names = build(folders, "dev", lora_targets=list(groups)).trainable_state_dict()
        return {name.removeprefix("transformer.").split(".lora_")[0] for name in names}

    double = [f"transformer_blocks.{block}" for block in range(2)]
    fused = {
        f"single_transformer_blocks.{block}.attn.{layer}"
        for block in range(2)
        for layer in ("to_qkv_mlp_proj", "to_out")
    }
    attention = {
        f"{block}.attn.{layer}"
        for block in double
        for layer in (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        )
    }
    assert layers("attention") == attention | fused
    assert layers("single") == fused
    assert layers("feed_forward") == {
        f"{block}.{part}.linear_{end}"
        for block in double
        for part in ("ff", "ff_context")
        for end in ("in", "out")
    }


def test_shift_depends_on_tokens_and_steps(folders: dict[str, Path]) -> None:
    policy = build(folders, "dev", resolution=128)  # 1,024 tokens
    assert isinstance(policy, Flux2)
    # The published fit has two lines over the tokens, one for 10 steps and one for 200.
    assert policy.shift_mu(10) == pytest.approx(8.73809524e-05 * 1024 + 1.89833333)
    assert policy.shift_mu(200) == pytest.approx(0.00016927 * 1024 + 0.45666666)
    assert build(folders, "dev", resolution=None).latent_shape == (4, 128, 128)


def test_a_model_distilled_to_few_steps_refuses_guidance(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"guidance_scale=2.0, but .* runs without guidance"):
        build(folders, "distilled", guidance_scale=2.0)
    assert build(folders, "distilled", guidance_scale=1.0).num_evaluations_per_sample == 1


def test_the_command_line_offers_what_a_model_has() -> None:
    for family in FAMILIES.values():
        parser = ArgumentParser()
        parser.add_class_arguments(family, "policy")
        names = vars(parser.get_defaults().policy).keys()
        assert {"guidance_scale", "max_sequence_length", "lora_rank", "dtype"} <= names
        assert not {"distilled_guidance", "true_cfg_scale"} & names
