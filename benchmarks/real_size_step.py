"""Trains a few iterations of a full-size model with random weights, and says where the time goes.

    python benchmarks/real_size_step.py sd35_medium
    python benchmarks/real_size_step.py flux1_dev --hardware 1x24gb quantized --iterations 3
    python benchmarks/real_size_step.py sdxl --images 4 --iterations 2
    python benchmarks/real_size_step.py sd15 --tiny       # the same path in seconds, on a CPU
    python benchmarks/real_size_step.py sd35_medium --iterations 2 -- --model.num_steps 4

The recipe of configs/models and configs/hardware with the JPEG reward; what stands after `--` goes
to `aegpo fit`. Networks have the published sizes and random weights (`random_weights.py`). Printed
are seconds and evaluations by phase as every iteration ends, then their means without the first,
which warms up; memory beside what `aegpo plan` says; the share of the floor (FLOPs of all
evaluations over the measured rate of a bf16 matrix product); and how far a first ratio is from 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from published_pipelines import write_pipeline
from random_weights import CLASSES, RandomWeights
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from aegpo.policies.diffusers_policy import DiffusersPolicy
from lightning_modules.cli.lightning_cli import AEGPOCLI
from lightning_modules.commands.plan.plan import make_plan

CONFIGS = Path(__file__).parents[1] / "configs"
PURPOSES = ("evaluations", "rollout", "probe", "reference", "update")


@dataclass
class Measured:
    """What a run showed.

    Args:
        model: Name of the model file.
        device: Where it ran.
        planned_gib: Peak of the memory as `aegpo plan` estimates it; None where it cannot.
        rows: Logged numbers of each iteration.
        parameters: Of the denoiser.
        flops: Of one row through the denoiser.
        rate: FLOP/s of a bf16 matrix product there.
    """

    model: str
    device: torch.device
    planned_gib: float | None
    rows: list[dict[str, float]] = field(default_factory=list)
    parameters: int = 0
    flops: float = 0.0
    rate: float = 1.0

    @property
    def kept(self) -> list[dict[str, float]]:
        """The iterations after the first, if there are any."""
        return self.rows[1:] or self.rows

    def seconds(self) -> dict[str, float]:
        """Mean seconds of an iteration by phase."""
        kept = self.kept
        names = [key for key in kept[-1] if key.startswith("seconds/")]
        return {
            name.removeprefix("seconds/"): sum(row.get(name, 0.0) for row in kept) / len(kept)
            for name in names
        }

    def spent(self) -> dict[str, float]:
        """Mean evaluations of an iteration by purpose."""
        before = self.rows[0] if len(self.rows) > 1 else {}
        return {
            name: (self.rows[-1][f"cost/{name}"] - before.get(f"cost/{name}", 0.0)) / len(self.kept)
            for name in PURPOSES
        }

    @property
    def floor_share(self) -> float:
        """Seconds that the evaluations' FLOPs take at `rate`, over the seconds they took."""
        return self.spent()["evaluations"] * self.flops / self.rate / sum(self.seconds().values())

    @property
    def peak_gib(self) -> float:
        """Peak memory of all iterations."""
        return max(row["memory/peak_gib"] for row in self.rows)

    @property
    def first_ratio(self) -> float:
        """Largest deviation from 1 of a first ratio, below fp32 of that to the rollout's."""
        names = ("ratio/rollout_max_dev", "ratio/first_max_dev")
        return max(next(row[name] for name in names if name in row) for row in self.rows)


class Collect(lightning.Callback):
    """Keeps the logged numbers of every iteration, and hands each on."""

    def __init__(self, rows: list[dict[str, float]], tell: Callable[[dict[str, float]], None]):
        self.rows, self.tell = rows, tell

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})
        self.tell(self.rows[-1])


class NoRun(AEGPOCLI):
    """The command line that builds everything and leaves the running to `measure`."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def measure(
    model: str,
    hardware: Sequence[str],
    iterations: int,
    tell: Callable[[dict[str, float]], None],
    *,
    images: int | None = None,
    tiny: bool = False,
    arguments: Sequence[str] = (),
) -> Measured:
    """Train a few iterations of a recipe.

    Args:
        model: Name of a file in configs/models.
        hardware: Names of files in configs/hardware.
        iterations: How many; the first warms up.
        tell: Called with what an iteration logged, as it ends.
        images: Images of an iteration, in two prompts; None for the recipe's own.
        tiny: Whether a small network stands in.
        arguments: More arguments of `aegpo fit`.

    Returns:
        What it showed.
    """
    RandomWeights.tiny = tiny
    names = (f"models/{model}", "rewards/jpeg", *(f"hardware/{name}" for name in hardware))
    files = [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    on_cpu = tiny or not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(write_pipeline(model, Path(temporary) / "pipeline"))
        cli = NoRun(
            [
                *("fit", *files),
                *("--model.policy.class_path", f"random_weights.{CLASSES[model].__name__}"),
                *("--model.policy.init_args.pretrained", folder),
                *("--model.policy.init_args.embedding_cache", f"{temporary}/embeddings"),
                *("--model.init_args.evaluation_rewards", "[]"),
                *("--trainer.default_root_dir", temporary),
                *("--trainer.logger", "false", "--trainer.num_sanity_val_steps", "0"),
                *("--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1"),
                *("--data.batches_per_epoch", str(iterations)),
                *("--trainer.enable_checkpointing", "false"),
                *("--trainer.enable_model_summary", "false"),
                *("--trainer.without_callbacks", "[SampleLogger,ScoreTable,RolloutCheckpoint]"),
                *(_few(images) if images is not None else ()),
                *(_short() if tiny else ()),
                *(("--trainer.accelerator", "cpu") if on_cpu else ()),
                *arguments,
            ]
        )
        module: Any = cli.model
        planned = make_plan(cli.trainer, module, cli.datamodule).memory
        peak = None if planned is None or planned.left_out else planned.peak / 2**30
        found = Measured(model, torch.device("cpu"), peak)
        cli.trainer.callbacks.append(Collect(found.rows, tell))  # type: ignore[attr-defined]
        cli.trainer.fit(module, datamodule=cli.datamodule)
        # The trainer has moved the policy to the CPU.
        found.device = torch.device("cpu" if on_cpu else "cuda")
        policy: DiffusersPolicy = module.policy
        found.parameters = sum(one.numel() for one in policy.denoiser.parameters())
        if policy.quantize is None:
            found.flops = flops_of_one_row(policy)
        found.rate = matrix_rate(found.device)
    return found


def _few(images: int) -> tuple[str, ...]:
    each = str(max(2, images // 2))
    return (
        *("--data.init_args.batch_size", "2"),
        *("--model.allocator.init_args.low", each, "--model.allocator.init_args.high", each),
    )


def _short() -> tuple[str, ...]:
    return (
        *("--model.policy.init_args.resolution", "64", "--model.num_steps", "4"),
        *("--model.step_selector.init_args.top_k", "2"),
    )


def matrix_rate(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a bf16 matrix product, the best of five."""
    size = size if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def flops_of_one_row(policy: DiffusersPolicy) -> float:
    """FLOPs of one row through the denoiser, without guidance."""
    latents = torch.zeros(1, *policy.latent_shape, device=policy.device)
    cond = policy.encode(["a cat"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.predict(latents, torch.ones(1, device=policy.device), cond)
    return float(counter.get_total_flops())


def main() -> None:
    """Parse, train, print."""
    # argparse takes what follows `--` with the first positional, so it does not get to see it.
    typed = sys.argv[1:]
    own, more = typed, []
    if "--" in typed:
        own, more = typed[: typed.index("--")], typed[typed.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="after --: more arguments of aegpo fit"
    )
    parser.add_argument("model", choices=sorted(CLASSES))
    parser.add_argument("--hardware", nargs="+", default=["1x80gb"], help="of configs/hardware")
    parser.add_argument("--iterations", type=int, default=3, help="the first is not counted")
    parser.add_argument("--images", type=int, help="of an iteration; the recipe's by default")
    parser.add_argument("--tiny", action="store_true", help="a small model, for a look at the path")
    options = parser.parse_args(own)
    console = Console(soft_wrap=True)
    images = 4 if options.tiny and options.images is None else options.images

    def tell(row: dict[str, float]) -> None:
        phases = [
            f"{key.removeprefix('seconds/')} {value:.2f}"
            for key, value in row.items()
            if key.startswith("seconds/")
        ]
        console.print(
            f"seconds: {', '.join(phases)}; peak {row['memory/peak_gib']:.1f} GiB", highlight=False
        )

    found = measure(
        *(options.model, options.hardware, options.iterations, tell),
        **{"images": images, "tiny": options.tiny, "arguments": more},
    )
    report(found, console)


def report(found: Measured, console: Console) -> None:
    """Print the table for the iterations after the first."""
    seconds, spent = found.seconds(), found.spent()
    table = Table("phase", "seconds", "evaluations", title=f"{found.model}, an iteration")
    for phase, duration in seconds.items():
        cost = spent.get(phase)
        table.add_row(phase, f"{duration:.2f}", "" if cost is None else f"{cost:,.0f}")
    console.print(table)
    planned = "" if found.planned_gib is None else f" (plan: {found.planned_gib:.1f})"
    total = sum(seconds.values())
    console.print(
        f"denoiser {found.parameters / 1e9:.2f} B parameters; {found.flops / 1e12:.2f} TFLOP an "
        f"evaluation; bf16 matrix product {found.rate / 1e12:.0f} TFLOP/s\n"
        f"floor {found.floor_share * total:.2f} s of {total:.2f} s: "
        f"{100 * found.floor_share:.0f} %; peak memory {found.peak_gib:.1f} GiB{planned}; "
        f"first ratio within {found.first_ratio:.1e} of 1"
    )


if __name__ == "__main__":
    main()
