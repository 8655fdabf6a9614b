"""Images that are no squares, in every family: tokens, entropy, updates and exports.

That they are the pipeline's own is in test_pipeline_defaults, beside the squares.
"""

from __future__ import annotations

from pathlib import Path

import policy_contract as contract
import pytest
import torch
from tiny_families import FAMILIES, Family, few_families

from aegpo.entropy import EntropyRecorder
from aegpo.entropy.tokens import absent_token_sets
from aegpo.image_size import Size
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.sde import DDIM, FlowSDE

TOKENS = {  # worked out by hand, latents by patches
    "StableDiffusion": 20 * 12,
    "StableDiffusionXL": 20 * 12,
    "StableDiffusion3": 6 * 4,
    "Flux": 6 * 4,
    "Flux2": 6 * 4,
    "Flux2Klein": 6 * 4,
    "QwenImage": 6 * 4,
    "Sana": 16 * 8,
    "ZImage": 6 * 4,
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_images_tokens_and_entropy_are_of_the_size_that_was_given(
    family: Family, tmp_path: Path
) -> None:
    oblong, flat = Size.of(family.oblong), Size.of(family.oblong[::-1])
    policy = family.built(tmp_path, lora_rank=2, **{"resolution": [oblong, flat]})
    assert policy.buckets == (oblong, flat) and policy.image_size == oblong
    cond = policy.encode(contract.PROMPTS)
    for size in (oblong, flat):
        with policy.at_resolution(size):
            layout = policy.token_layout(cond)
            assert layout.num_image == policy.num_image_tokens == TOKENS[family.name]
            assert policy.latent_shape[1] * size.width == policy.latent_shape[2] * size.height
            absent = absent_token_sets(layout)
            tokens = next(kind for kind in ("image_to_text", "all_to_all") if kind not in absent)
            recorder = EntropyRecorder(tokens=tokens)
            with recorder.record(policy) as recording:
                tree = contract.draw(policy, 2, observer=recording)
            assert tree.images is not None and tree.images.shape[2:] == size
            assert recording.curve().isfinite().all()
            named = policy.pipeline_arguments(2)
            assert (named["height"], named["width"]) == size
    assert policy.image_size == oblong


def test_an_odd_oblong_unet_is_recorded_at_every_level(tiny_sd15_folder: Path) -> None:
    """Sides of 18 and 10 latents: 9 x 5, then 5 x 3 in the middle, each rounded up by itself."""
    family = next(one for one in FAMILIES if one.name == "StableDiffusion")
    policy = family.policy(str(tiny_sd15_folder), lora_rank=2, resolution=(36, 20))
    layout = policy.token_layout(policy.encode(contract.PROMPTS))
    assert (layout.num_image, layout.image_sizes) == (18 * 10, (9 * 5, 5 * 3))
    with EntropyRecorder(tokens="image_to_image").record(policy) as recording:
        contract.draw(policy, 2, observer=recording)
    assert recording.curve().isfinite().all()


@pytest.mark.parametrize("family", few_families(), ids=lambda family: family.name)
def test_an_update_scores_as_the_rollout_and_the_export_draws_the_same(
    family: Family, tmp_path: Path
) -> None:
    family.pipeline().save_pretrained(tmp_path / "base")

    def build(**arguments: object) -> DiffusersPolicy:
        more = {"lora_rank": 4, "resolution": family.oblong, **arguments}
        return family.policy(**family.arguments(tmp_path / "base", **more))

    unet = family.policy.denoiser_name == "unet"
    contract.assert_first_ratio_is_one(build(), DDIM() if unet else FlowSDE(), 0.7)
    contract.assert_export_passes_its_check(build, tmp_path / "lora", **family.guided)


def test_sizes_that_a_model_does_not_take_are_refused_wherever_they_stand(
    tiny_sd3_folder: Path,
) -> None:
    family = next(one for one in FAMILIES if one.name == "StableDiffusion3")
    for given in ((24, 18), [(16, 16), (24, 18)]):
        with pytest.raises(ValueError, match=r"are \[24, 16\] and \[24, 20\]"):
            family.policy(str(tiny_sd3_folder), resolution=given)
    policy = family.policy(str(tiny_sd3_folder), max_sequence_length=4, resolution=[24, 16])
    assert policy.buckets == () and policy.latent_shape == (4, 12, 8)
    with (
        pytest.raises(ValueError, match=r"up to 64; the nearest is \[64, 16\]"),
        policy.at_resolution((68, 16)),
    ):
        pass
    assert policy.latent_shape == (4, 12, 8)
    with pytest.raises(ValueError, match=r"latents have shape \(1, 4, 8, 12\)"):
        policy(torch.zeros(1, 4, 8, 12), torch.ones(1), policy.encode(["a"]))
