"""A LoRA to begin with: in the policy's adapters, or merged into the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from policy_contract import INDEX, NOISE, PROMPTS, inputs, shake
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegpo.export.check import check_export
from aegpo.planning.policy_size import policy_size
from aegpo.policies.adapters.given import DEFAULT_FILE, find_lora
from aegpo.policies.adapters.layouts import DIFFUSERS, Form
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.stable_diffusion import StableDiffusion
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3

SOURCE = {"lora_rank": 3, "lora_alpha": 5, "lora_targets": ["attention"]}


def build(folder: Path, **arguments: Any) -> StableDiffusion3:
    return StableDiffusion3(str(folder), max_sequence_length=4, lora_seed=1, **arguments)


def predicted(policy: DiffusersPolicy) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = policy(*inputs(policy))
    return prediction


@pytest.fixture(scope="module")
def source(
    tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StableDiffusion3, Path]:
    """A trained policy, and the folder with its adapters: in `diffusers` and in `comfyui`."""
    folder = tmp_path_factory.mktemp("source")
    policy = build(tiny_sd3_folder, **SOURCE)
    shake(policy, 0.1)
    for layout in ("diffusers", "comfyui"):
        (folder / layout).mkdir()
        policy.save_as(folder / layout, Form(layout, "mine"))
    return policy, folder


def test_the_policy_goes_on_from_it(
    source: tuple[StableDiffusion3, Path], tiny_sd3_folder: Path
) -> None:
    trained, folder = source
    policy = build(tiny_sd3_folder, lora_from=str(folder / "diffusers"))
    assert torch.equal(predicted(policy), predicted(trained))
    with policy.reference(), trained.reference():
        assert torch.equal(predicted(policy), predicted(trained))
    with torch.device("meta"):  # as where Lightning builds models, whose default is the GPU
        elsewhere = build(tiny_sd3_folder, lora_from=str(folder / "diffusers"))
    assert torch.equal(predicted(elsewhere), predicted(trained))
    # A run that goes on without the file is of the same make.
    assert policy.made_with == build(tiny_sd3_folder, **SOURCE).made_with
    # Its settings may be said, if they are the file's.
    build(tiny_sd3_folder, lora_from=str(folder / "diffusers" / DEFAULT_FILE), **SOURCE)


def test_another_layout_and_half_precision_take_the_files_numbers(
    source: tuple[StableDiffusion3, Path], tiny_sd3_folder: Path
) -> None:
    trained, folder = source
    policy = build(tiny_sd3_folder, lora_from=str(folder / "comfyui"))
    torch.testing.assert_close(predicted(policy), predicted(trained), rtol=0, atol=1e-5)
    assert policy.made_with["lora_rank"] == policy.made_with["lora_alpha"] == 3
    half = build(tiny_sd3_folder, lora_from=str(folder / "diffusers"), dtype="bfloat16")
    for ours, theirs in zip(
        half.trainable_parameters(), trained.trainable_parameters(), strict=True
    ):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"lora_rank": 8}, "lora_rank=8, but the adapters of lora_from=.* have 3; leave lora_rank"),
        ({"lora_alpha": 6}, "lora_alpha=6, but .* have 5"),
        ({"lora_targets": ["to_q"]}, r"lora_targets=\['to_q'\] means 2 layers, but .* adapts 15"),
        ({"lora_into": "both"}, "lora_into='both'; choose policy or reference"),
        ({"lora_into": "reference", "quantize": "nf4"}, "lora_into=reference .* leave quantize"),
    ],
)
def test_a_contradiction_is_told(
    source: tuple[StableDiffusion3, Path],
    tiny_sd3_folder: Path,
    said: dict[str, Any],
    told: str,
) -> None:
    with pytest.raises(ValueError, match=told):
        build(tiny_sd3_folder, lora_from=str(source[1] / "diffusers"), **said)


def test_as_part_of_the_reference_it_stays_where_it_is(
    source: tuple[StableDiffusion3, Path], tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    trained, folder = source
    arguments = {"lora_from": str(folder / "diffusers"), "lora_into": "reference", "lora_rank": 2}
    policy = build(tiny_sd3_folder, **arguments, lora_targets=["attention", "feed_forward"])
    start = predicted(policy)
    torch.testing.assert_close(start, predicted(trained), rtol=0, atol=1e-5)
    shake(policy, 0.1)
    assert (predicted(policy) - start).abs().max() > 1e-3
    with policy.reference():
        assert torch.equal(predicted(policy), start)
    # What is written holds both, and belongs on the plain base.
    for layout in ("diffusers", "comfyui", "merged"):
        (tmp_path / layout).mkdir()
        check, _, _ = check_export(
            policy, tmp_path / layout, PROMPTS[:2], INDEX[:2], 2, NOISE, Form(layout, "mine")
        )
        assert check.passed, (layout, check)
    # And one can go on from it, as from any other.
    whole = build(tiny_sd3_folder, lora_from=str(tmp_path / "diffusers"))
    torch.testing.assert_close(predicted(whole), predicted(policy), rtol=0, atol=1e-5)


@pytest.mark.parametrize("into", ["policy", "reference"])
def test_all_weights_can_be_trained_on_from_it(
    source: tuple[StableDiffusion3, Path], tiny_sd3_folder: Path, into: Any
) -> None:
    trained, folder = source
    lora = {"lora_from": str(folder / "diffusers"), "lora_into": into}
    policy = build(tiny_sd3_folder, full_finetuning=True, **lora)
    torch.testing.assert_close(predicted(policy), predicted(trained), rtol=0, atol=1e-5)
    shake(policy, 0.1)
    with policy.reference():
        reference = predicted(policy)
    if into == "reference":
        torch.testing.assert_close(reference, predicted(trained), rtol=0, atol=1e-5)
    else:
        with trained.reference():
            torch.testing.assert_close(reference, predicted(trained), rtol=0, atol=1e-5)


def test_convolutions_and_ranks_that_differ(tiny_sd15_folder: Path, tmp_path: Path) -> None:
    """As kohya's trainer writes them for SD 1.5, whose `proj_in` is a convolution."""
    clean: Any = DiffusionPipeline.from_pretrained(tiny_sd15_folder)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["proj_in", "attn1.to_q"], rank_pattern={"to_q": 3}
    )
    clean.unet.add_adapter(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in clean.unet.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.2)
    save_file(
        {f"unet.{k}": v for k, v in get_peft_model_state_dict(clean.unet).items()},
        tmp_path / "plain.safetensors",  # diffusers reads a scale of 1 where none is said
    )
    plain: Any = DiffusionPipeline.from_pretrained(tiny_sd15_folder)
    plain.load_lora_weights(tmp_path / "plain.safetensors")
    given = {"lora_from": str(tmp_path / "plain.safetensors"), "guidance_scale": 1.0}
    policy = StableDiffusion(str(tiny_sd15_folder), lora_seed=1, **given)
    assert policy.made_with["lora_rank"] == policy.made_with["lora_alpha"] == 3
    merged = StableDiffusion(str(tiny_sd15_folder), lora_rank=2, lora_into="reference", **given)
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, 5, policy.trained.config.cross_attention_dim)
    with torch.no_grad():
        own, below, theirs = (
            unet(latents, torch.tensor([500, 20]), text, return_dict=False)[0]
            for unet in (policy.trained, merged.trained, plain.unet)
        )
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(below, theirs, rtol=0, atol=1e-5)
    for made in (policy, merged):
        folder = tmp_path / ("policy" if made is policy else "reference")
        folder.mkdir()
        check, _, _ = check_export(
            made, folder, PROMPTS[:1], INDEX[:1], 2, NOISE, Form("kohya", "mine")
        )
        assert check.passed, (made.beneath_from, check)
    # What has not been used yet is no dead end: it gets a gradient.
    padded = [p for n, p in policy.named_parameters() if "proj_in.lora_A" in n]
    assert padded and all(part[2:].abs().max() > 0 for part in padded)


def test_what_is_no_lora_of_this_model_is_refused(
    source: tuple[StableDiffusion3, Path],
    tiny_sd3_folder: Path,
    tiny_sd15_folder: Path,
    tmp_path: Path,
) -> None:
    good = source[1] / "diffusers" / DEFAULT_FILE
    tensors = load_file(good)

    def refused(told: str, content: dict[str, Tensor] | None = None, given: Any = None) -> None:
        file = tmp_path / "given" / "one.safetensors"
        file.parent.mkdir(exist_ok=True)
        if content is not None:
            save_file(content, file)
        with pytest.raises((ValueError, FileNotFoundError), match=told) as error:
            build(tiny_sd3_folder, lora_from=str(given or file))
        assert "\n" not in str(error.value)

    first = "transformer.transformer_blocks.0.attn.to_q"
    refused("holds DoRA", tensors | {f"{first}.lora_magnitude_vector": torch.ones(1)})
    refused("holds LoKr", {f"{first}.lokr_w1": torch.ones(1, 1)})
    refused(
        "adapts more than the transformer",
        tensors | {"text_encoder.x.lora_A.weight": torch.ones(1, 1)},
    )
    shifted = {name.replace("blocks.1", "blocks.7"): value for name, value in tensors.items()}
    refused("transformer_blocks.7", shifted)
    refused("could not be read", {n: v[:, :1].clone() for n, v in tensors.items()})
    refused("alpha", tensors | {f"{first}.alpha": torch.ones(())})
    save_file(tensors, tmp_path / "given" / "two.safetensors")
    refused("has 2: one.safetensors, two.safetensors; name one", given=tmp_path / "given")
    (tmp_path / "empty").mkdir()
    refused("has none", given=tmp_path / "empty")
    (tmp_path / "pickled.bin").write_bytes(b"")
    refused("no .safetensors file", given=tmp_path / "pickled.bin")
    refused("whole pipeline.*give it as pretrained", given=tiny_sd15_folder)
    refused("no file, no folder and no hub id", given=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="adapts more than the unet"):
        StableDiffusion(str(tiny_sd15_folder), lora_from=str(good))


def test_an_address_on_the_hub_may_name_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(source: str, file: str) -> str:
        asked.append((source, file))
        return file

    monkeypatch.setattr("aegpo.policies.adapters.given.hf_hub_download", download)
    assert find_lora("owner/name/folder/a.safetensors") == Path("folder/a.safetensors")
    assert asked == [("owner/name", "folder/a.safetensors")]


def test_a_plan_counts_the_adapters_of_the_file(
    source: tuple[StableDiffusion3, Path], tiny_sd3_folder: Path
) -> None:
    trained, folder = source
    arguments: dict[str, Any] = {"pretrained": str(tiny_sd3_folder), "max_sequence_length": 4}
    arguments["lora_from"] = str(folder / "diffusers")
    own = sum(parameter.numel() for parameter in trained.trainable_parameters())
    assert policy_size(StableDiffusion3, arguments).trainable == own
    beneath = arguments | {"lora_into": "reference", "lora_rank": 6, "lora_targets": ["attention"]}
    assert policy_size(StableDiffusion3, beneath).trainable == 2 * own
    assert DIFFUSERS.layout == "diffusers"
