"""Every family is built on the CPU whatever torch's default device is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from tiny_families import FAMILIES, Family, few_families

from aegpo.entropy import EntropyRecorder
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.sde import DDIM, FlowSDE


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = request.param
    return made


@pytest.fixture(scope="module")
def pipeline(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of the family, to be read only."""
    path = tmp_path_factory.mktemp(family.name)
    family.pipeline().save_pretrained(path)
    return path


def build(family: Family, pipeline: Path, device: str, **more: Any) -> DiffusersPolicy:
    with torch.device(device):
        return family.policy(**family.arguments(pipeline, lora_rank=4, lora_seed=1, **more))


def devices(policy: DiffusersPolicy) -> set[str]:
    """Where everything lies that a policy holds, also what is hidden from the module registry."""
    parts = (policy, policy.vae, policy.text_encoders, *policy._reference)
    return {
        tensor.device.type for part in parts for tensor in (*part.parameters(), *part.buffers())
    }


def test_a_family_is_the_same_under_another_default_device(
    family: Family, pipeline: Path, tmp_path: Path
) -> None:
    plain = build(family, pipeline, "cpu", **family.guided)
    before = torch.random.get_rng_state()
    moved = build(family, pipeline, "meta", offload=True, **family.guided)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert devices(moved) == {"cpu"} and not moved.sigmas(3).is_meta
    for one, other in zip(plain.trainable_parameters(), moved.trainable_parameters(), strict=True):
        assert torch.equal(one, other)  # the adapters

    curves, images = [], []
    for policy in (plain, moved):
        with EntropyRecorder().record(policy) as recording:
            images.append(contract.draw(policy, observer=recording).images)
        curves.append(recording.curve())
    assert torch.equal(*curves) and torch.equal(*images)
    sde = DDIM() if family.policy.denoiser_name == "unet" else FlowSDE()
    for policy in (plain, moved):
        contract.assert_first_ratio_is_one(policy, sde, 0.5)
        torch.optim.AdamW(policy.trainable_parameters(), lr=1e-2).step()
    for one, other in zip(plain.trainable_parameters(), moved.trainable_parameters(), strict=True):
        assert torch.equal(one, other)  # updated alike
    assert devices(moved) == {"cpu"}
    check, _, _ = contract.exported(moved, tmp_path / "export")
    assert check.passed, check


def test_a_reference_is_built_on_the_cpu_and_moved(family: Family, pipeline: Path) -> None:
    if family not in few_families():
        pytest.skip("its reference is read as that of every family; ALL_FAMILIES=1 runs it")
    plain = build(family, pipeline, "cpu")
    whole = build(family, pipeline, "meta", full_finetuning=True)
    contract.shake(whole, 0.02)
    with whole.reference():
        with torch.device("meta"):  # a user's own default device, while the copy is read
            assert whole.denoiser.device.type == "cpu"
        assert torch.equal(contract.draw(whole).images, contract.draw(plain).images)
    assert devices(whole) == {"cpu"}
