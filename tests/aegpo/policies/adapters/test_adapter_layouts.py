"""Adapters in the layouts of other programs: with them diffusers draws the policy's images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from policy_contract import INDEX, NOISE, PROMPTS, shake
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, Family

from aegpo.export.check import ExportCheck, check_export
from aegpo.policies.adapters.factors import Factors
from aegpo.policies.adapters.given import read_lora
from aegpo.policies.adapters.layouts import Form, kohya_flux
from aegpo.policies.diffusers_policy import DiffusersPolicy

RANKS = {"lora_rank": 3, "lora_alpha": 5, "lora_seed": 1}
"""A scale that is neither 1 nor a power of two."""

# In FLUX.1's single blocks diffusers takes kohya's files for the real widths alone; see below.
DOUBLE = ["transformer_blocks.*.attn.to_q", "transformer_blocks.*.attn.add_v_proj"]
TARGETS: dict[str, Any] = {
    "Flux": [*DOUBLE, "transformer_blocks.*.attn.to_out.0", "ff_context.net.2"],
    "Flux2": ["attention", "feed_forward"],
    "QwenImage": ["attention", "feed_forward"],
    "StableDiffusion": ["attention", "feed_forward"],
    "StableDiffusion3": ["attention", "feed_forward"],
    "ZImage": ["attention", "feed_forward"],
}
"""Of each family whose names are told apart somewhere."""


def families() -> list[Family]:
    """Those with own names; all that have layouts with ALL_FAMILIES in the environment."""
    wanted = [one for one in FAMILIES if one.name in TARGETS or "ALL_FAMILIES" in os.environ]
    return [one for one in wanted if one.policy.lora_layouts]


def trained(family: Family, folder: Path, **more: Any) -> DiffusersPolicy:
    """A policy on a new pipeline whose adapters change what it draws."""
    targets = {"lora_targets": TARGETS.get(family.name)}
    policy = family.built(folder / "base", **RANKS | targets | more)
    shake(policy, 0.1)
    return policy


def written(policy: DiffusersPolicy, folder: Path, layout: Any) -> ExportCheck:
    """What `aegpo export` measures of a layout, with two steps and two prompts."""
    folder.mkdir()
    return check_export(policy, folder, PROMPTS[:2], INDEX[:2], 2, NOISE, Form(layout, "mine"))[0]


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_plain_diffusers_draws_the_policys_images(family: Family, tmp_path: Path) -> None:
    policy = trained(family, tmp_path)
    for layout in family.policy.lora_layouts:
        check = written(policy, tmp_path / layout, layout)
        assert check.passed, (layout, check)
        assert [file.name for file in (tmp_path / layout).iterdir()] == ["mine.safetensors"]


def test_alpha_is_in_the_tensors_and_a_wrong_one_is_seen(tmp_path: Path) -> None:
    (family,) = (one for one in FAMILIES if one.name == "StableDiffusion")
    policy = trained(family, tmp_path)
    assert written(policy, tmp_path / "right", "kohya").passed
    tensors = load_file(tmp_path / "right/mine.safetensors")
    alphas = {name: value for name, value in tensors.items() if name.endswith(".alpha")}
    assert len(alphas) * 3 == len(tensors) and set(map(float, alphas.values())) == {5.0}

    write = type(policy).save_as

    def rank_as_alpha(folder: str | Path, form: Form) -> None:
        write(policy, folder, form)
        wrong = tensors | {name: torch.tensor(3.0) for name in alphas}
        save_file(wrong, Path(folder) / "mine.safetensors", {"format": "pt"})

    policy.save_as = rank_as_alpha  # type: ignore[method-assign]
    check = written(policy, tmp_path / "wrong", "kohya")
    assert not check.passed and check.weight_difference > 0.3


def test_kohyas_single_blocks_of_flux_at_their_real_width(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=0, num_single_layers=2)
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, network
    )
    generator = torch.Generator().manual_seed(0)

    def factors(inputs: int, outputs: int) -> Factors:
        down = torch.randn(2, inputs, generator=generator)
        return Factors(down, torch.randn(outputs, 2, generator=generator), 2.0)

    block, other = (f"single_transformer_blocks.{number}" for number in (0, 1))
    given = {
        f"{block}.attn.to_q": factors(3072, 3072),
        f"{block}.attn.to_v": factors(3072, 3072),
        f"{block}.proj_mlp": factors(3072, 12288),
        f"{block}.proj_out": factors(15360, 3072),
        f"{other}.attn.to_k": factors(3072, 3072),
    }
    tensors = kohya_flux(given, network)
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (21504, 8)
    save_file(tensors, tmp_path / "mine.safetensors")
    found = read_lora(pipeline, "transformer", tmp_path / "mine.safetensors")
    assert found.keys() - given.keys() == {
        *(f"{block}.attn.to_k", f"{other}.attn.to_q", f"{other}.attn.to_v", f"{other}.proj_mlp"),
    }
    for name, part in found.items():
        probe = torch.randn(part.down.shape[1], generator=generator)
        wanted, own = given.get(name), part.scale * part.up @ (part.down @ probe)
        theirs = torch.zeros(len(own))
        if wanted is not None:
            theirs = wanted.scale * wanted.up @ (wanted.down @ probe)
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match=r"x_embedder has no name in kohya's layout of FLUX"):
        kohya_flux({"x_embedder": factors(64, 3072)}, network)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_pipeline_says_what_rounding_took(tmp_path: Path, dtype: str) -> None:
    (family,) = (one for one in FAMILIES if one.name == "StableDiffusion3")
    policy = trained(family, tmp_path, dtype=dtype)
    check = written(policy, tmp_path / "merged", "merged")
    assert check.passed, check
    assert (tmp_path / "merged/model_index.json").is_file()
    assert check.rounding is not None and "rounding changed the update by" in str(check)
    assert (check.rounding < 1e-5) if dtype == "float32" else (1e-4 < check.rounding < 0.1)
