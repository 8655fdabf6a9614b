from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_pipelines import tiny_sd3

from aegpo.policies.lora import adapters_disabled, add_lora, match_targets
from aegpo.policies.speed.adapted_linear import AdaptedLinear

GROUPS = {"attention": ("attn.to_q", "attn.absent"), "nothing": ("nowhere",)}


def transformer() -> SD3Transformer2DModel:
    return tiny_sd3(dual_attention=True).transformer


def test_targets_match_whole_name_endings() -> None:
    model = transformer()
    assert match_targets(model, ["attention"], GROUPS) == [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.attn.to_q",
    ]
    # "to_q" is the end of attn2.to_q too, but no end of a name like "xto_q".
    assert len(match_targets(model, ["to_q"], GROUPS)) == 3
    exact = match_targets(model, ["transformer_blocks.0.attn2.to_q", "attn2.to_q"], GROUPS)
    assert exact == ["transformer_blocks.0.attn2.to_q"]
    starred = match_targets(model, ["transformer_blocks.*.ff.net.2"], GROUPS)
    assert starred == [f"transformer_blocks.{block}.ff.net.2" for block in (0, 1)]
    with pytest.raises(ValueError, match="matches no linear layer"):
        match_targets(model, ["blocks.*.ff.net.2"], GROUPS)


@pytest.mark.parametrize("targets", [["attention", "nothing"], ["o_q"], ["attn"], []])
def test_a_target_that_matches_nothing_is_an_error(targets: list[str]) -> None:
    with pytest.raises(ValueError, match=r"matches no linear layer|no LoRA targets"):
        match_targets(transformer(), targets, GROUPS)


def test_adapters_are_fp32_seeded_and_leave_the_global_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        model = transformer().to(torch.bfloat16)
        add_lora(model, ["transformer_blocks.0.attn.to_q"], rank=4, alpha=8, seed=seed)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert [p.dtype for p in named.values()] == [torch.float32] * 2
        assert model.pos_embed.proj.weight.dtype == torch.bfloat16
        assert all("lora_" in name for name in named)
        weights.append(next(p for name, p in named.items() if "lora_A" in name))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 8), (4, 0)])
def test_rank_and_alpha_are_positive(rank: int, alpha: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        add_lora(transformer(), ["proj_out"], rank=rank, alpha=alpha, seed=0)


def test_disabling_nests_and_restores_each_layer() -> None:
    model = transformer()
    add_lora(model, match_targets(model, ["to_q"], GROUPS), rank=2, alpha=2, seed=0)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    layers[1]._disable_adapters = True  # a state that somebody else chose

    def state() -> list[bool]:
        return [layer.disable_adapters for layer in layers]

    with adapters_disabled(model):
        with adapters_disabled(model):
            assert state() == [True, True, True]
        assert state() == [True, True, True]
    assert state() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_inputs_are_not_cast_up_and_down_again(dtype: torch.dtype) -> None:
    model = tiny_sd3().transformer.to(dtype)
    layers = match_targets(model, ["attn.to_q"], {})
    add_lora(model, layers, rank=4, alpha=8, seed=0)
    layer = model.get_submodule(layers[0])
    for weight in layer.parameters():
        weight.data = weight.data + 0.1 * torch.randn_like(weight)  # the up-projection starts at 0
    inputs = torch.randn(5, width(layer), dtype=torch.bfloat16, requires_grad=True)

    def run() -> tuple[list[torch.Tensor], int]:
        copies: list[torch.Tensor] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: copies.append(tensor) or tensor, lambda tensor: tensor
        )
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), hooks:
            output = layer(inputs)
        weights = [weight for weight in layer.parameters() if weight.requires_grad]
        found = torch.autograd.grad(output.float().square().sum(), [inputs, *weights])
        own = {one.data_ptr() for one in copies if one.shape == inputs.shape}
        return [output.detach(), *found], len(own - {inputs.data_ptr()})

    ours, copied = run()
    assert copied == 0
    layer.__class__ = LoraLinear  # peft's own again
    del layer._cast_input_dtype
    theirs, copied = run()
    assert copied == 1
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_without_autocast_a_half_input_meets_fp32_weights() -> None:
    model = tiny_sd3().transformer.bfloat16()
    layers = match_targets(model, ["attn.to_q"], {})
    add_lora(model, layers, rank=4, alpha=8, seed=0)
    layer = model.get_submodule(layers[0])
    assert layer(torch.randn(5, width(layer), dtype=torch.bfloat16)).dtype == torch.bfloat16


def width(layer: torch.nn.Module) -> int:
    return int(layer.base_layer.in_features)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_what_is_added_in_place_is_what_peft_adds(half: bool) -> None:
    model = transformer().to(torch.bfloat16 if half else torch.float32).train()
    add_lora(model, match_targets(model, ["to_q", "to_v", "net.2"], {}), rank=4, alpha=8, seed=0)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    inputs = transformer_inputs(model)

    def run(kind: type[LoraLinear]) -> list[torch.Tensor]:
        for layer in layers:
            assert type(layer) is AdaptedLinear
            layer.__class__ = kind
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            with torch.no_grad():
                drawn = model(**inputs)[0]
            trained = model(**inputs)[0]
        trained.float().square().mean().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert len(gradients) == 2 * len(layers)
        return [drawn, trained.detach(), *gradients]

    ours, peft = run(AdaptedLinear), run(LoraLinear)
    assert torch.equal(ours[0], ours[1])
    assert all(map(torch.equal, ours, peft))


def test_a_scale_that_rounds_is_left_to_peft() -> None:
    for alpha, kind in ((8, AdaptedLinear), (2, AdaptedLinear), (5, LoraLinear)):
        model = transformer()
        layers = match_targets(model, ["attn.to_q"], {})
        add_lora(model, layers, rank=4, alpha=alpha, seed=0)
        assert type(model.get_submodule(layers[0])) is kind


def transformer_inputs(model: SD3Transformer2DModel) -> dict[str, Any]:
    config, generator = model.config, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(model.dtype)

    return {
        "hidden_states": normal(2, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": normal(2, 5, config.joint_attention_dim),
        "pooled_projections": normal(2, config.pooled_projection_dim),
        "return_dict": False,
    }


def test_gradients_of_inputs_are_summed_in_the_dtype_of_the_inputs() -> None:
    model = tiny_sd3().transformer.bfloat16()
    layers = match_targets(model, ["attn.to_q"], {})
    add_lora(model, layers, rank=4, alpha=8, seed=0)
    layer = model.get_submodule(layers[0])
    assert isinstance(layer, AdaptedLinear)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    inputs = torch.randn(50, width(layer), generator=torch.Generator().manual_seed(0))
    found = []
    for kind in (AdaptedLinear, LoraLinear):
        layer.__class__ = kind
        leaf = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            output = layer(leaf)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), leaf)
        found.append(gradient)
    assert found[0].dtype == torch.float32 and torch.equal(*found)
