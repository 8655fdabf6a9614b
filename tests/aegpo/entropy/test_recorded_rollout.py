"""The recorder as the observer of a real rollout of a real (tiny) Stable Diffusion 3 policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aegpo.entropy import EntropyRecorder, delta_entropy
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE

PROMPTS = ["a red circle", "two blue stars"]
STEPS = 4


def build(folder: Path, **arguments: Any) -> StableDiffusion3:
    return StableDiffusion3(str(folder), **{"lora_rank": 4, "max_sequence_length": 8, **arguments})


def images(policy: StableDiffusion3, observer: Any = None) -> Tensor:
    """Latents of 4 + 4 images, branching once."""
    eta = torch.tensor([[0.7, 0.7, 0.0, 0.0], [0.0, 0.7, 0.0, 0.0]])
    branching = torch.tensor([[1, 2, 1, 1], [1, 2, 1, 1]])
    tree = rollout(
        policy,
        FlowSDE(),
        policy.encode(PROMPTS),
        ExplorationSchedule(eta, branching),
        torch.tensor([4, 4]),
        KeyedNoise(0),
        torch.tensor([7, 3]),
        decode=False,
        observer=observer,
    )
    return tree.latents


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("tokens", ["image_to_all", "image_to_text", "text_to_image"])
def test_a_tree_is_recorded_and_stays_what_it_was(
    tiny_sd3_dual_folder: Path, guidance: float, tokens: Any
) -> None:
    policy = build(tiny_sd3_dual_folder, guidance_scale=guidance)
    recorder = EntropyRecorder(tokens=tokens, rows=5)
    plain = images(policy)
    with recorder.record(policy) as recording:
        assert torch.equal(images(policy, recording), plain)
    assert torch.equal(images(policy), plain)
    curve = recording.curve()
    assert curve.shape == (2, STEPS)
    assert bool(((curve > 0) & (curve <= 1)).all())
    only_joint = all(not name.endswith("attn2") for name in recording.layer_names)
    assert only_joint == ("text" in tokens)

    if guidance == 1.0:  # with guidance other chunks would round the prediction differently
        policy.max_batch = 3
        with recorder.record(policy) as chunked:
            images(policy, chunked)
        torch.testing.assert_close(chunked.curve(), curve, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full_finetuning", [False, True], ids=["lora", "full"])
def test_delta_entropy_of_policy_and_base(tiny_sd3_folder: Path, full_finetuning: bool) -> None:
    policy = build(tiny_sd3_folder, full_finetuning=full_finetuning)
    recorder = EntropyRecorder(rows=8)

    def curves() -> tuple[Tensor, Tensor]:
        with recorder.record(policy) as current:
            images(policy, current)
        with policy.reference(), recorder.record(policy) as base:
            images(policy, base)
        assert current.layer_names == base.layer_names  # hence the same sampled rows
        return current.curve(), base.curve()

    torch.testing.assert_close(*curves(), rtol=0, atol=1e-6)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    assert bool((delta_entropy(*curves()) > 1e-6).all())
