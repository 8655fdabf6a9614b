"""What large models need: parts that are offloaded, compiled, or of another size in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies import StableDiffusion3
from aegpo.rollout import rollout
from aegpo.sde import ODE

PROMPTS = ["a red circle", "two blue stars"]


def build(folder: Path, **arguments: Any) -> StableDiffusion3:
    return StableDiffusion3(str(folder), lora_rank=4, max_sequence_length=4, **arguments)


def draw(policy: StableDiffusion3, observer: Any = None) -> Tensor:
    schedule = ExplorationSchedule.deterministic(2, 3)
    cond, ones, index = policy.encode(PROMPTS), torch.ones(2).long(), torch.arange(2)
    tree = rollout(policy, ODE(), cond, schedule, ones, KeyedNoise(0), index, observer=observer)
    assert tree.images is not None
    return tree.images


def test_offloaded_parts_are_idle_on_the_cpu(
    tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, policy = build(tiny_sd3_folder), build(tiny_sd3_folder, offload=True)
    moved: list[tuple[str, str]] = []
    original: Callable[..., nn.Module] = nn.Module.to

    def to(module: nn.Module, device: object, *rest: Any, **named: Any) -> nn.Module:
        for name in ("vae", "text_encoders"):
            if module is getattr(policy, name):
                moved.append((name, str(device)))
        return original(module, device, *rest, **named)

    monkeypatch.setattr(nn.Module, "to", to)
    assert torch.equal(draw(policy), draw(plain))
    # To the policy's device and back, once for both prompts.
    assert moved == [("text_encoders", "cpu")] * 2 + [("vae", "cpu")] * 2
    draw(policy)
    assert [name for name, _ in moved[4:]] == ["vae"] * 2, "known prompts wake no encoder"
    names = [name for name, _ in policy.named_parameters()]
    assert names and all(name.startswith("transformer.") for name in names)
    assert not any(part.training for part in (policy.train().vae, policy.text_encoders))


def test_another_size_inside_the_context_only(tiny_sd3_folder: Path) -> None:
    policy = build(tiny_sd3_folder)
    assert draw(policy).shape == (2, 3, 16, 16)
    with policy.at_resolution(32):
        assert policy.latent_shape == (4, 16, 16)
        assert draw(policy).shape == (2, 3, 32, 32)
    with policy.at_resolution(None):
        assert policy.latent_shape == (4, 8, 8)
    with (
        pytest.raises(ValueError, match="multiples of 4 pixels up to 64"),
        policy.at_resolution(30),
    ):
        pass
    with pytest.raises(KeyError), policy.at_resolution(32):
        raise KeyError
    assert policy.latent_shape == (4, 8, 8)


def test_a_compiled_denoiser_draws_the_same_and_can_be_recorded(
    tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend=backend))
    plain = build(tiny_sd3_folder)
    compiled = build(tiny_sd3_folder, compile=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(draw(compiled), draw(plain), rtol=0, atol=1e-5)
    made = len(graphs)
    assert made > 0
    with EntropyRecorder().record(compiled) as recording:
        draw(compiled, recording)
    assert recording.curve().shape == (2, 3) and len(graphs) == made
    draw(compiled)
    assert len(graphs) == made, "recording must not throw the compiled code away"
