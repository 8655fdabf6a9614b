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
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
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


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_train_on_quantized_weights(
    tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import bitsandbytes as bnb
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    # diffusers asks for a GPU before it tries; bitsandbytes itself also computes on the CPU.
    for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
        quantizer = getattr(bnb_quantizer, name)
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda *_: {"": "cpu"})
    plain = build(tiny_sd3_folder, dtype="bfloat16")
    policy = build(tiny_sd3_folder, dtype="bfloat16", quantize=kind)
    layer = policy.transformer.transformer_blocks[0].attn.to_q.base_layer
    assert isinstance(layer, bnb.nn.Linear4bit if kind == "nf4" else bnb.nn.Linear8bitLt)
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    if kind == "nf4":  # its CPU kernel wants rows of 64, which the tiny model has not
        assert layer.compute_dtype == torch.bfloat16 and layer.weight.quant_type == "nf4"
        return
    latents, sigma = torch.randn(2, *policy.latent_shape), torch.tensor([1.0, 0.4])
    prediction = policy(latents, sigma, policy.encode(PROMPTS))
    expected = plain(latents, sigma, plain.encode(PROMPTS))
    torch.testing.assert_close(prediction, expected, rtol=0, atol=0.2)
    assert not torch.equal(prediction, expected)
    prediction.square().mean().backward()
    gradients = [p.grad for n, p in policy.named_parameters() if "lora_B" in n and p.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients if gradient is not None)


def test_quantization_is_refused_where_it_cannot_work(tiny_sd3_folder: Path) -> None:
    with pytest.raises(ValueError, match="trains all weights"):
        build(tiny_sd3_folder, full_finetuning=True, quantize="nf4")
    with pytest.raises(ValueError, match="choose nf4, int8 or null"):
        build(tiny_sd3_folder, quantize="fp4")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="quantize needs a GPU and bitsandbytes"):
            build(tiny_sd3_folder, quantize="nf4")
