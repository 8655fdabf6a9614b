"""Low-rank adapters (LoRA, arXiv 2106.09685) on a diffusers model, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from aegpo.policies.speed.adapted_linear import add_in_place

ADAPTER = "default"
"""Name of the one adapter that is trained."""


def match_targets(
    model: nn.Module, targets: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Finds the linear layers that the targets mean.

    Args:
        model: The model that will get the adapters.
        targets: Each the name of a group, or the end of a module's name ("to_q", "attn.to_q",
            "transformer_blocks.0.attn.to_q"), in which * stands for anything
            ("single_transformer_blocks.*.proj_out").
        groups: Group names and the module-name endings that they stand for. A model need not
            have all layers of a group, but it must have one.

    Returns:
        Full names of the layers, in the order of the modules.

    Raises:
        ValueError: If there is no target or one matches no linear layer.
    """
    if not targets:
        raise ValueError(f"no LoRA targets; give module names or groups from {sorted(groups)}")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    matched: set[str] = set()
    for target in targets:
        endings = groups.get(target, (target,))
        found = [
            name for name in linear if any(fnmatchcase(f".{name}", f"*.{end}") for end in endings)
        ]
        if not found:
            raise ValueError(
                f"LoRA target {target!r} matches no linear layer of {type(model).__name__}; use a "
                f"group ({', '.join(sorted(groups))}) or the end of a layer's name, "
                f"for example {linear[0] if linear else '(it has none)'}"
            )
        matched.update(found)
    return [name for name in linear if name in matched]


def add_lora(model: ModelMixin, layers: Sequence[str], rank: int, alpha: float, seed: int) -> None:
    """Freezes a diffusers model and adds fp32 adapters that change nothing yet.

    The down-projection starts normal with standard deviation 1/rank, the up-projection zero. They
    are drawn on the CPU, so that a seed means the same weights on every machine.

    Args:
        model: Changed in place.
        layers: Full names of linear layers.
        rank: Rank of the update, at least 1.
        alpha: The update is scaled by alpha / rank.
        seed: Of the initial down-projections; the global random state is left alone.

    Raises:
        ValueError: If `rank` is below 1 or `alpha` is not positive.
    """
    if rank < 1 or alpha <= 0:
        raise ValueError(f"lora_rank={rank}, lora_alpha={alpha}; both must be positive")
    model.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(layers)
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds every GPU
        model.add_adapter(config, adapter_name=ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # In half precision the optimizer's small steps would round to nothing.
            parameter.data = parameter.data.float()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._cast_input_dtype = _cast_input
    add_in_place(model, ADAPTER)


def _cast_input(inputs: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Peft's cast of a layer's inputs to the dtype of its weights, left to autocast where it is on.

    Autocast would take them back to half precision at once: the same numbers, two copies later.
    """
    if inputs is None or inputs.dtype == dtype:
        return inputs
    device = inputs.device.type  # the meta device knows no autocast
    return inputs if device != "meta" and torch.is_autocast_enabled(device) else inputs.to(dtype)


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights under the names that diffusers and peft exchange."""
    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return state


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as if it had no adapters.

    Only the switch that a layer's forward reads is turned. The libraries' own way of disabling
    adapters also clears ``requires_grad`` of their weights, which would end training silently.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled
