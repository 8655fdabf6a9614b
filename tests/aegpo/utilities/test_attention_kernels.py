"""The kernels that attention runs on: what was asked for, and cuDNN's not unasked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import policy_contract as contract
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry
from tiny_families import FAMILIES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aegpo.entropy import EntropyRecorder
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.utilities.attention_kernels import attention_kernels

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
FLAGS = ("cudnn", "flash", "mem_efficient", "math")
CUDA = torch.device("cuda")


class Operations(TorchDispatchMode):
    """Names of all operations that run inside, also in a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines: one that calls torch's attention itself, one that asks diffusers."""
    made = {}
    for family in FAMILIES:
        if family.name in ("StableDiffusion3", "StableDiffusion", "Flux"):
            made[family.name] = tmp_path_factory.mktemp(family.name)
            family.pipeline().save_pretrained(made[family.name])
    return made


def build(folders: dict[str, Path], name: str, **more: Any) -> DiffusersPolicy:
    (family,) = (family for family in FAMILIES if family.name == name)
    return family.policy(**family.arguments(folders[name], lora_rank=4, **more))


def backward(policy: DiffusersPolicy) -> list[Tensor]:
    policy.train()
    contract.shake(policy)
    policy(*contract.inputs(policy)).square().mean().backward()
    return [p.grad for p in policy.trainable_parameters() if p.grad is not None]


def flags() -> list[bool]:
    return [getattr(torch.backends.cuda, f"{flag}_sdp_enabled")() for flag in FLAGS]


@pytest.fixture
def restored_flags() -> Iterator[None]:
    before = flags()
    yield
    for flag, value in zip(FLAGS, before, strict=True):
        getattr(torch.backends.cuda, f"enable_{flag}_sdp")(value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "attention_backend='fast'; choose null or one of flash, .*_native_cudnn"),
        ("flash", "attention_backend='flash' cannot run here: .*flash-attn"),
    ],
)
def test_a_name_is_checked_before_anything_loads(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        StableDiffusion3("no/where", attention_backend=name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["StableDiffusion3", "StableDiffusion"])
def test_layers_that_call_torch_take_no_kernel_of_another(
    folders: dict[str, Path], name: str
) -> None:
    with pytest.raises(ValueError, match=r"call torch's attention themselves; choose null, native"):
        build(folders, name, attention_backend="flex")


@pytest.mark.parametrize("name", ["StableDiffusion3", "StableDiffusion", "Flux"])
def test_the_kernel_is_the_one_asked_for_also_in_the_second_forward(
    folders: dict[str, Path], name: str
) -> None:
    """Checkpointing computes blocks anew in the backward pass, outside of the policy's forward."""
    gradients, before = [], flags()
    for backend in (None, "native", "_native_math"):
        policy = build(
            folders, name, attention_backend=backend, gradient_checkpointing=True, lora_seed=0
        )
        contract.inputs(policy)  # encoded now: the encoders keep torch's choice
        with Operations() as seen:
            gradients.append(backward(policy))
        assert (FLASH in seen.names) == (backend != "_native_math"), backend
    assert flags() == before
    for default, native, math in zip(*gradients, strict=True):
        assert torch.equal(default, native)
        torch.testing.assert_close(default, math, rtol=1e-3, atol=1e-5)


def test_the_kernel_is_traced_into_a_compiled_graph(folders: dict[str, Path]) -> None:
    policy = build(folders, "StableDiffusion3", attention_backend="_native_math")
    inputs = contract.inputs(policy)
    expected = policy(*inputs).detach()
    policy.trained.compile(backend="aot_eager")
    with Operations() as seen:
        compiled = policy(*inputs)
        compiled.square().mean().backward()
    assert FLASH not in seen.names
    contract.assert_close(compiled.detach(), expected, 1e-5)


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
def test_entropy_is_recorded_under_every_backend(folders: dict[str, Path], backend: str) -> None:
    active, table = registry._active_backend, dict(registry._backends)
    plain = build(folders, "Flux")
    policy = build(folders, "Flux", attention_backend=backend)
    assert registry._active_backend == active  # of other models
    curves = []
    for one in (plain, policy):
        unwatched = contract.draw(one, 2).images
        with EntropyRecorder(rows=None).record(one) as recording:
            assert torch.equal(contract.draw(one, 2, observer=recording).images, unwatched)
        curves.append(recording.per_prompt_layer())
    torch.testing.assert_close(*curves, rtol=0, atol=1e-5)
    assert curves[0].std() > 1e-5 and registry._backends == table


@pytest.mark.parametrize("name", ["StableDiffusion3", "Flux"])
def test_a_kernel_that_does_not_fit_is_named(folders: dict[str, Path], name: str) -> None:
    policy = build(folders, name, attention_backend="_native_efficient")  # of GPUs
    before = flags()
    with pytest.raises(ValueError, match="'_native_efficient' has no kernel for this device"):
        policy(*contract.inputs(policy))
    assert flags() == before


def test_cudnn_is_off_on_a_gpu_unless_asked_for(restored_flags: None) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_flash_sdp(False)  # a user's choice
    before = flags()
    for backend in (None, "native", "flex"):
        with attention_kernels(backend, CUDA):
            assert flags() == [False, *before[1:]]
        with attention_kernels(backend, torch.device("cpu")):
            assert flags() == before  # nothing to pay for
        assert flags() == before
    with pytest.raises(KeyError), attention_kernels(None, CUDA):
        raise KeyError
    assert flags() == before
    with attention_kernels("_native_cudnn", CUDA):
        assert flags() == [True, False, False, False]
    for flag in FLAGS[1:]:
        getattr(torch.backends.cuda, f"enable_{flag}_sdp")(False)
    with attention_kernels(None, CUDA):  # who leaves nothing else has asked for it
        assert flags() == [True, False, False, False]


def test_a_policy_is_guarded_wherever_it_attends(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU text encoders, denoiser, decoder and the second forward run without cuDNN."""
    monkeypatch.setattr(DiffusersPolicy, "device", torch.device("cpu"))
    seen: list[bool] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, **named: Any) -> Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return original(*args, **named)

    def as_on_a_gpu(name: str | None, device: torch.device) -> Any:
        return attention_kernels(name, CUDA)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr("aegpo.policies.diffusers_policy.attention_kernels", as_on_a_gpu)
    monkeypatch.setattr("aegpo.utilities.attention_kernels.attention_kernels", as_on_a_gpu)
    policy = build(folders, "StableDiffusion3", gradient_checkpointing=True)
    contract.draw(policy, 2)
    drawn = len(seen)
    backward(policy)
    assert drawn > 0 and len(seen) > drawn and not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled()
