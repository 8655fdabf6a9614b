"""What `make gpu` tries: parts, each a list of items with a time limit, and how an item reports.

A part is a function that tries one item; its process is its own, so that a crash of the driver
costs one item. It reports rows as they come; the runner prints them and judges the whole.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FAMILIES = (
    *("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "Flux2", "Flux2Klein"),
    *("QwenImage", "Sana", "ZImage"),
)
FULL_SIZES = ("sd15", "sdxl", "sd35_medium", "flux1_dev")


@dataclass(frozen=True)
class Settings:
    """What an item is told.

    Args:
        tiny: Whether small networks stand in for full sizes, and the CPU for a card.
        cap_gib: Most GiB that the item may take of the card's memory; None for all of it.
    """

    tiny: bool = False
    cap_gib: float | None = None


@dataclass(frozen=True)
class Part:
    """Items that one function tries.

    Args:
        name: As it is typed after `--parts`.
        function: "module:function", called with an item, the settings and `emit`.
        items: What is tried, in this order.
        seconds: Time limit of an item. Its process's start, about 15 s, is no part of it.
        one_process: Whether items share a process as long as none of them dies.
        cap_gib: Memory that an item may take of the card.
        says: What it shows, for the list.
    """

    name: str
    function: str
    items: tuple[str, ...]
    seconds: float
    one_process: bool = False
    cap_gib: float | None = None
    says: str = ""

    def resolve(self) -> Callable[[str, Settings, Emit], None]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[[str, Settings, Emit], None] = getattr(
            importlib.import_module(module), name
        )
        return function


PARTS = (
    Part(
        *("families-fp32", "gpu.families:in_fp32", FAMILIES, 40.0, True, None),
        "every family, tiny: the pipeline's image, first ratio, gradients, resume, export",
    ),
    Part(
        *("families-bf16", "gpu.families:in_bf16", FAMILIES, 40.0, True, None),
        "the same with frozen weights in bfloat16 under bf16-mixed",
    ),
    Part(
        "features",
        "gpu.features:feature",
        ("quickstart", "backends", "offload", "waiting", "nf4", "int8"),
        100.0,
        True,
        None,
        "20 iterations of the quickstart, attention backends, what offload leaves on the card, "
        "waits of the host, 4 and 8 bits",
    ),
    Part(
        "faster",
        "gpu.faster:faster",
        ("sampler", "guidance_gradient", "auto", "compiled_blocks"),
        100.0,
        True,
        None,
        "samplers, the gradient through one branch of guidance, micro-batches by memory, "
        "compiled blocks",
    ),
    Part(
        *("full-80gb", "gpu.full_sizes:on_80gb", FULL_SIZES, 75.0, False, 80.0),
        "published sizes with random weights: two iterations of the 80 GB recipe, few images",
    ),
    Part(
        *("full-24gb", "gpu.full_sizes:on_24gb", FULL_SIZES, 75.0, False, 24.0),
        "the same recipes for 24 GB, within 24 GB; FLUX.1 in 4 bits",
    ),
    Part(
        *("floor", "gpu.faster:floor", ("sd35_medium",), 75.0, False, 80.0),
        "forward, update and adapters of a full size over the rate of a matrix product",
    ),
)


Emit = Callable[..., None]
"""emit(check, value, ok=None, wanted=""): one row; ok None is a figure without a verdict."""


def emit_line(item: str) -> Emit:
    """Make the `emit` of an item: each row is one line of JSON on standard output."""

    def emit(check: str, value: Any, ok: bool | None = None, wanted: str = "") -> None:
        if isinstance(value, float) and not math.isfinite(value):
            value, ok = str(value), False
        row = {"item": item, "check": check, "value": value, "ok": ok, "wanted": wanted}
        print(json.dumps(row), file=sys.__stdout__, flush=True)

    return emit
