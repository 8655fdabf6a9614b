"""Published sizes with random weights: two iterations of the shipped recipes, on few images."""

from __future__ import annotations

import torch
from gpu.parts import Emit, Settings

IMAGES = {"sd15": 8, "sdxl": 4, "sd35_medium": 8, "flux1_dev": 4}
"""Images of an iteration, in two prompts: seconds, where the recipe has 48 to 192."""


def on_80gb(item: str, settings: Settings, emit: Emit) -> None:
    """The recipe of configs/hardware/1x80gb.yaml."""
    run_recipe(item, ["1x80gb"], settings, emit)


def on_24gb(item: str, settings: Settings, emit: Emit) -> None:
    """The recipe of configs/hardware/1x24gb.yaml, FLUX.1 with quantized.yaml."""
    quantized = item == "flux1_dev" and not settings.tiny
    run_recipe(item, ["1x24gb", *(["quantized"] if quantized else [])], settings, emit)


def run_recipe(model: str, hardware: list[str], settings: Settings, emit: Emit) -> None:
    """Train two iterations and report phases, memory beside the plan, and the share of the floor.

    Args:
        model: Name of a file in configs/models.
        hardware: Names of files in configs/hardware.
        settings: Whether small networks stand in.
        emit: Takes the rows.
    """
    from trainings import Recipe, measure

    number = 0

    def tell(row: dict[str, float]) -> None:
        nonlocal number
        number += 1
        seconds = sum(value for key, value in row.items() if key.startswith("seconds/"))
        emit(f"iteration {number}, seconds", seconds)

    images = 4 if settings.tiny else IMAGES[model]
    found = measure(Recipe(model, hardware, (), images, settings.tiny), 2, tell)
    phases = [f"{name} {value:.2f}" for name, value in found.seconds().items()]
    emit("phases of the second, seconds", ", ".join(phases))
    loss, norm = found.rows[-1]["update/loss"], found.rows[-1]["update/gradient_norm"]
    emit("gradient norm", norm, norm > 0 and loss == loss, "finite, above 0")
    # To the rollout's log-probs, whose batches were larger: kernels round otherwise there.
    emit("first ratio's distance from 1", found.first_ratio)
    if not settings.tiny:
        planned = "" if found.planned_gib is None else f", plan {found.planned_gib:.1f}"
        within = settings.cap_gib is None or found.peak_gib <= settings.cap_gib
        cap = "" if settings.cap_gib is None else f"<= {settings.cap_gib:.0f} GiB"
        emit("peak GiB", f"{found.peak_gib:.1f}{planned}", within, cap)
        if found.flops:
            emit("share of the floor, second iteration", f"{100 * found.floor_share:.0f} %")
        reserved = torch.cuda.max_memory_reserved() / 2**30
        emit("reserved GiB at most", reserved)
