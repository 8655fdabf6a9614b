"""With what adapters begin: new ones by their settings, or a LoRA whose settings they take over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from aegpo.policies.adapters.factors import Factors, of_one_shape
from aegpo.policies.lora import match_targets

RANK, TARGETS = 32, ("attention",)
"""Of adapters for which nothing is said."""


class Said(NamedTuple):
    """What a user says of adapters; None where nothing.

    Args:
        lora_rank: Their rank.
        lora_alpha: Their scale times the rank.
        lora_targets: See `match_targets`.
    """

    lora_rank: int | None
    lora_alpha: int | None
    lora_targets: list[str] | None


@dataclass(frozen=True, eq=False)
class AdapterStart:
    """Adapters before they are made.

    Args:
        layers: Full names of the layers that get one.
        targets: What means these layers, as `lora_targets` has it.
        rank: Of all.
        alpha: Of all.
        factors: Updates to start as, by layer; none for new ones, which change nothing yet.
    """

    layers: list[str]
    targets: list[str]
    rank: int
    alpha: int
    factors: Mapping[str, Factors] = field(default_factory=dict)


def adapters_at_start(
    model: nn.Module,
    groups: Mapping[str, Sequence[str]],
    said: Said,
    given: Mapping[str, Factors],
    lora_from: str | None,
) -> AdapterStart:
    """Decide on a network's adapters.

    Args:
        model: The network that will get them.
        groups: See `match_targets`.
        said: Settings; by default rank 32, twice that for alpha, and the attention's layers.
        given: Updates to start as, by layer, whose settings then hold; none for new adapters.
        lora_from: Where they are from, for messages.

    Returns:
        What is to be made.

    Raises:
        ValueError: If a target matches nothing, or a setting is not that of what is given.
    """
    if not given:
        targets = said.lora_targets or list(TARGETS)
        rank = RANK if said.lora_rank is None else said.lora_rank
        alpha = 2 * rank if said.lora_alpha is None else said.lora_alpha
        return AdapterStart(match_targets(model, targets, groups), targets, rank, alpha)
    factors, rank, alpha = of_one_shape(given)
    layers = [name for name, _ in model.named_modules() if name in factors]
    targets = said.lora_targets or _names(model, groups, layers)
    found = match_targets(model, targets, groups) if said.lora_targets else layers
    for name, own in (("lora_rank", rank), ("lora_alpha", alpha)):
        if getattr(said, name) not in (None, own):
            raise ValueError(
                f"{name}={getattr(said, name)}, but the adapters of lora_from={lora_from!r} have "
                f"{own}; leave {name} out, or set lora_into to reference to train others on them"
            )
    if found != layers:
        raise ValueError(
            f"lora_targets={targets} means {len(found)} layers, but lora_from={lora_from!r} adapts "
            f"{len(layers)}, such as {layers[0]}; leave lora_targets out, or set lora_into to "
            "reference to train others on them"
        )
    return AdapterStart(layers, targets, rank, alpha, factors)


def _names(model: nn.Module, groups: Mapping[str, Sequence[str]], layers: list[str]) -> list[str]:
    """The groups that are just these layers, if there are such; else their own names."""
    inside: dict[str, list[str]] = {}
    for group in groups:
        try:
            found = match_targets(model, [group], groups)
        except ValueError:  # the model has none of these layers
            continue
        if set(found) <= set(layers):
            inside[group] = found
    covered = {name for found in inside.values() for name in found}
    return list(inside) if covered == set(layers) else layers
