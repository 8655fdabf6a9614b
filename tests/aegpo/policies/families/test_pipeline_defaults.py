"""A policy draws what a user of diffusers gets who says nothing: expectations from diffusers alone.

The pipeline is loaded by its own class and called with prompts, noise, size and number of steps;
everything else is its own default. The policy is told those defaults, by name and from the
signature of the pipeline's call, where training leaves them out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_families import FAMILIES, Family
from torch import Tensor

STEPS = 3


def ddim(own: Any) -> Any:
    """Latents are not clipped to [-1, 1]; the published configs say so, the class's default not."""
    return DDIMScheduler.from_config(own.config, clip_sample=False)


def packed(pipeline: Any, noise: Tensor) -> Tensor:
    packed: Tensor = pipeline._pack_latents(noise, *noise.shape)
    return packed


@dataclass(frozen=True)
class OnPurpose:
    """What differs from the pipeline's defaults on purpose.

    Args:
        told: Arguments of the pipeline's call whose defaults the policy has to be told.
        call: What the pipeline has to be told.
        policy: What the policy has to be told beside.
        scheduler: The scheduler instead of the pipeline's own.
        latents: The pipeline's form of the noise.
        load: Parts that the pipeline is loaded without.
    """

    told: tuple[str, ...] = ()
    call: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    scheduler: Callable[[Any], Any] = lambda own: own
    latents: Callable[[Any, Tensor], Tensor] = lambda pipeline, noise: noise
    load: tuple[str, ...] = ()


GUIDED = ("guidance_scale",)  # training leaves guidance off unless it is asked for
PATCHES = OnPurpose(latents=lambda pipeline, noise: pipeline._patchify_latents(noise))
TABLE = {
    # Its safety checker is not loaded, and would blacken images that a reward is to see.
    "StableDiffusion": OnPurpose(GUIDED, scheduler=ddim, load=("safety_checker",)),
    "StableDiffusionXL": OnPurpose(GUIDED, scheduler=ddim),
    "StableDiffusion3": OnPurpose(  # the tiny one has no T5
        GUIDED, load=("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
    ),
    "Flux": OnPurpose(latents=packed),
    "Flux2": PATCHES,
    "Flux2Klein": PATCHES,
    # Without a negative text its pipeline has no guidance, whatever its scale.
    "QwenImage": OnPurpose(
        ("true_cfg_scale",),
        call={"negative_prompt": [" "] * len(contract.PROMPTS)},
        policy={"negative_prompt": " "},
        latents=packed,
    ),
    # Sizes off its list would be drawn at another one; its published solver is no Euler step.
    "Sana": OnPurpose(
        GUIDED,
        call={"use_resolution_binning": False},
        scheduler=lambda own: FlowMatchEulerDiscreteScheduler(shift=own.config.flow_shift),
    ),
    "ZImage": OnPurpose(  # the tiny one has positions for 64 tokens
        GUIDED, call={"max_sequence_length": 48}, policy={"max_sequence_length": 48}
    ),
}
SAID = {"num_inference_steps", "height", "width"}
SAME_LEVELS = {"sigmas"}
"""Written out by some policies; that they are the default's is what the images show."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_rollout_is_the_bare_call_of_the_pipeline(family: Family, tmp_path: Path) -> None:
    own = TABLE[family.name]
    family.pipeline().save_pretrained(tmp_path)
    signature = inspect.signature(family.policy.pipeline_class.__call__).parameters
    defaults = {name: signature[name].default for name in own.told}
    size = {name: value for name, value in family.sizes.items() if name == "resolution"}
    policy = family.policy(str(tmp_path), lora_rank=4, **size, **defaults, **own.policy)

    without = dict.fromkeys(own.load)
    pipeline = family.policy.pipeline_class.from_pretrained(
        tmp_path, local_files_only=True, **without
    )
    pipeline.scheduler = own.scheduler(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def compare() -> None:
        height, width = policy.image_size
        expected = pipeline(
            prompt=list(contract.PROMPTS),
            height=height,
            width=width,
            num_inference_steps=STEPS,
            latents=own.latents(pipeline, contract.start_noise(policy)),
            output_type="pt",
            **own.call,
        ).images
        assert expected.shape == (len(contract.PROMPTS), 3, height, width)
        assert expected.std() > 1e-2, "an image without contrast would hide every mistake"
        contract.assert_close(contract.draw(policy, STEPS).images, expected)
        # What the policy would have a user type says the same.
        contract.assert_close(contract.pipeline_images(policy, pipeline, STEPS), expected)

    compare()
    with policy.at_resolution(family.oblong):
        assert policy.image_size == family.oblong
        compare()
    typed = policy.pipeline_arguments(STEPS)
    assert typed.keys() >= SAID and typed["num_inference_steps"] == STEPS
    for name in typed.keys() - SAID - SAME_LEVELS - own.call.keys():
        assert typed[name] == signature[name].default, name


def test_what_training_leaves_out_is_what_the_documentation_says() -> None:
    """The table of docs/policies.md, which test_defaults compares with both sides' defaults."""
    docs = (Path(__file__).parents[4] / "docs/policies.md").read_text()
    for name, own in TABLE.items():
        rows = [line for line in docs.splitlines() if line.startswith(f"| `{name}` | `")]
        left_out = {row.split("`")[3] for row in rows if row.count("|") == 5}
        assert left_out == set(own.told), name
    assert TABLE.keys() == {family.name for family in FAMILIES}
