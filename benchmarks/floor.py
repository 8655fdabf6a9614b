"""How near the card's own speed the denoiser runs: forward, update, and what adapters cost.

    python benchmarks floor                              # the bundled model; on a GPU full sizes
    python benchmarks floor --models sd35_medium --rows 32 --samples 8
    python benchmarks floor --quick

Share of the floor: FLOPs, as torch counts them in a forward pass, over the measured rate of a
matrix product in the same dtype, over the time taken; a sample in an update counts as three forward
passes for every row of guidance. Full sizes have random weights (`random_weights.py`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import heading
from torch import Tensor
from trainings import QUICKSTART, Recipe, build, matrix_rate
from turns import Taken, take_turns

from aegpo.entropy.cost import forward_operations
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.lora import adapters_disabled
from aegpo.utilities.tables import markdown_table

HEADER = ("", "rows", "seconds", "share of the floor", "to the forward without adapters")


SIZES = {
    QUICKSTART: (64, 64),
    "sd35_medium": (32, 4),
    "flux1_dev": (16, 4),
    "sdxl": (16, 4),
    "sd15": (64, 8),
}
"""Rows of a forward pass, with guidance two for each sample, and samples of an update."""
PLAIN = ("--model.policy.init_args.gradient_checkpointing", "false")
COMPILED = ("--model.policy.init_args.compile", "true")


@dataclass(frozen=True)
class Sizes:
    """How a model is measured.

    Args:
        rows: Rows of a forward pass; None for those of `SIZES`.
        samples: Samples of an update; likewise.
        rounds: Rounds that count.
        compiled: Whether the denoiser's blocks are compiled.
        tiny: Whether a small network on the CPU stands in.
    """

    rows: int | None = None
    samples: int | None = None
    rounds: int = 5
    compiled: bool = False
    tiny: bool = False


@dataclass(frozen=True)
class Found:
    """What a model showed.

    Args:
        taken: What each way took.
        rows: Its rows through the denoiser.
        passes: What these count as, in forward passes of a row.
        flops: FLOPs of one.
        rate: FLOP/s of a matrix product.
        dtype: Of both.
        seconds: Of all rounds, with compiling.
    """

    taken: dict[str, Taken]
    rows: dict[str, int]
    passes: dict[str, int]
    flops: float
    rate: float
    dtype: torch.dtype
    seconds: float

    def share(self, way: str) -> float:
        """Seconds that its FLOPs take at the rate of a matrix product, over those it took."""
        return self.passes[way] * self.flops / self.rate / self.taken[way].seconds


def build_policy(model: str, device: str, tiny: bool, compiled: bool) -> DiffusersPolicy:
    """A policy as its recipe has it, without gradient checkpointing.

    Args:
        model: A key of `SIZES`.
        device: Where it runs.
        tiny: Whether a small network stands in for a published one.
        compiled: Whether its blocks are compiled.

    Returns:
        The policy, in training mode.
    """
    hardware = () if model == QUICKSTART else ("1x80gb",)
    settings = (*PLAIN, *(COMPILED if compiled else ()))
    with tempfile.TemporaryDirectory() as temporary:
        recipe = Recipe(model, hardware, tiny=tiny, arguments=settings)
        module: Any = build(recipe, Path(temporary)).model
        module.configure_model()
    policy: DiffusersPolicy = module.policy
    return policy.to(device).train()


def measured(model: str, sizes: Sizes) -> Found:
    """Time a forward pass with and without adapters, and one with its backward pass.

    Args:
        model: A key of `SIZES`.
        sizes: How.

    Returns:
        What it showed.
    """
    device = "cuda" if torch.cuda.is_available() and not sizes.tiny else "cpu"
    policy = build_policy(model, device, sizes.tiny, sizes.compiled)
    each = policy.num_evaluations_per_sample
    samples = sizes.samples or SIZES[model][1]
    number = (sizes.rows or SIZES[model][0]) // each
    cond = policy.encode(["a red circle"])
    half = policy.compute_dtype == torch.bfloat16

    def forward(adapters: bool) -> Callable[[], None]:
        def run() -> None:
            off = nullcontext() if adapters else adapters_disabled(policy.trained)
            with torch.no_grad(), off, _autocast(device, half):
                policy(*_inputs(policy, number, cond))

        return run

    def update() -> None:
        with _autocast(device, half):
            prediction = policy(*_inputs(policy, samples, cond))
        prediction.float().square().mean().backward()
        policy.zero_grad()

    start = time.perf_counter()
    ways = {"without adapters": forward(False), "forward": forward(True), "update": update}
    taken = take_turns(ways, sizes.rounds, device)
    seconds = time.perf_counter() - start
    rows = {"without adapters": number * each, "forward": number * each, "update": samples * each}
    return Found(
        taken,
        rows,
        rows | {"update": 3 * rows["update"]},
        forward_operations(policy),
        matrix_rate(torch.device(device), policy.compute_dtype),
        policy.compute_dtype,
        seconds,
    )


def table(model: str, found: Found) -> str:
    """A model's rows as Markdown."""
    lines = [
        [
            f"{model}, {way}",
            str(found.rows[way]),
            f"{one.seconds:.4f}",
            f"{100 * found.share(way):.0f} %",
            "" if way == "update" else f"{one.ratio:.3f}",
        ]
        for way, one in found.taken.items()
    ]
    said = (
        f"{model}: {found.flops / 1e12:.3g} TFLOP a row, matrix product {found.rate / 1e12:.3g} "
        f"TFLOP/s in {str(found.dtype).removeprefix('torch.')}; all rounds {found.seconds:.0f} s"
    )
    return f"{said}\n\n{markdown_table(HEADER, lines)}\n"


def _inputs(
    policy: DiffusersPolicy, number: int, cond: Conditioning
) -> tuple[Tensor, Tensor, Conditioning]:
    latents = torch.zeros(number, *policy.latent_shape, device=policy.device)
    sigma = torch.full((number,), 0.5, device=policy.device)
    return latents, sigma, cond.select(torch.zeros(number, dtype=torch.long, device=policy.device))


def _autocast(device: str, half: bool) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks floor", description=(__doc__ or "").splitlines()[0]
    )
    cuda = torch.cuda.is_available()
    published = ["sd35_medium", "flux1_dev"]
    parser.add_argument(
        *("--models",), nargs="+", choices=SIZES, default=published if cuda else [QUICKSTART]
    )
    parser.add_argument("--rows", type=int, help="of a forward pass")
    parser.add_argument("--samples", type=int, help="of an update")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken")
    parser.add_argument("--compile", action="store_true", help="with compiled blocks")
    parser.add_argument("--tiny", action="store_true", help="small models, for a look at the path")
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args(arguments)
    sizes = Sizes(
        *(options.rows, options.samples, 1 if options.quick else options.rounds),
        *(options.compile, options.tiny),
    )
    print(f"{heading()}\n", flush=True)
    for model in options.models:
        print(table(model, measured(model, sizes)), flush=True)


if __name__ == "__main__":
    main()
