"""Trains a few iterations of a recipe as it is shipped, and keeps what was logged.

The quickstart as it is; the recipes of configs/models and configs/hardware with the JPEG reward and
with networks of the published sizes and random weights (`random_weights.py`).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from published_pipelines import write_pipeline
from random_weights import CLASSES, RandomWeights

from aegpo.entropy.cost import forward_operations
from aegpo.policies.diffusers_policy import DiffusersPolicy
from lightning_modules.cli.failures import quieten_lightning
from lightning_modules.cli.lightning_cli import AEGPOCLI
from lightning_modules.commands.plan.plan import make_plan

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = "shapes"
"""The model of configs/shapes.yaml in the paper's own form, beside those of configs/models."""
PURPOSES = ("evaluations", "rollout", "probe", "reference", "update")


@dataclass
class Measured:
    """What a run showed.

    Args:
        model: Name of the model file.
        device: Where it ran.
        planned_gib: Peak of the memory as `aegpo plan` estimates it; None where it cannot.
        images: Images of an iteration.
        rows: Logged numbers of each iteration.
        parameters: Of the denoiser.
        flops: Of one row through the denoiser.
        rate: FLOP/s of a matrix product there, in the denoiser's dtype.
        weight_bytes: Bytes of all networks of the policy, when it was built.
        begun_ns: When the first iteration began, in nanoseconds since 1970.
    """

    model: str
    device: torch.device
    planned_gib: float | None
    images: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    parameters: int = 0
    flops: float = 0.0
    rate: float = 1.0
    weight_bytes: int = 0
    begun_ns: int = 0

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
    def images_a_second(self) -> float:
        """Images of an iteration over its seconds."""
        return self.images / sum(self.seconds().values())

    @property
    def peak_gib(self) -> float:
        """Peak memory of all iterations."""
        return max(row["memory/peak_gib"] for row in self.rows)

    @property
    def first_ratio(self) -> float:
        """Largest deviation from 1 of a first ratio, below fp32 of that to the rollout's.

        NaN where the objective has no ratio.
        """
        names = ("ratio/rollout_max_dev", "ratio/first_max_dev")
        return max(next((row[one] for one in names if one in row), math.nan) for row in self.rows)


class Collect(lightning.Callback):
    """Keeps when a training began and the logged numbers of every iteration, and hands these on."""

    def __init__(self, found: Measured, tell: Callable[[dict[str, float]], None]):
        self.found, self.tell = found, tell

    def on_train_start(self, *_: Any) -> None:
        self.found.begun_ns = time.time_ns()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        row = {key: float(value) for key, value in trainer.callback_metrics.items()}
        self.found.rows.append(row)
        self.tell(row)


class NoRun(AEGPOCLI):
    """The command line that builds everything and leaves the running to `measure`."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Args:
        model: Name of a file in configs/models, or `QUICKSTART`.
        hardware: Names of files in configs/hardware; none for the quickstart.
        overlays: Names of files in configs/overlays.
        images: Images of an iteration, in two prompts, of the quickstart in prompts of 12; None
            for the recipe's own.
        tiny: Whether a small network stands in; the quickstart's is small.
        arguments: More arguments of `aegpo fit`.
    """

    model: str
    hardware: Sequence[str] = ()
    overlays: Sequence[str] = ()
    images: int | None = None
    tiny: bool = False
    arguments: Sequence[str] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether it runs there: small networks do, and all where there is no GPU."""
        return self.tiny or not torch.cuda.is_available()

    def __str__(self) -> str:
        return " + ".join([self.model, *self.hardware, *self.overlays])


def measure(
    recipe: Recipe,
    iterations: int,
    tell: Callable[[dict[str, float]], None],
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Measured:
    """Train a few iterations of a recipe.

    Args:
        recipe: What is trained.
        iterations: How many; the first warms up.
        tell: Called with what an iteration logged, as it ends.
        inside: Makes the context that the training runs in.

    Returns:
        What it showed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        cli = build(recipe, Path(temporary), iterations)
        module: Any = cli.model
        planned = make_plan(cli.trainer, module, cli.datamodule).memory
        peak = None if planned is None or planned.left_out else planned.peak / 2**30
        found = Measured(recipe.model, torch.device("cpu"), peak)
        data: Any = cli.datamodule
        found.images = int(module.allocator(None, data.batch_size).sum())
        cli.trainer.callbacks.append(Collect(found, tell))  # type: ignore[attr-defined]
        module.configure_model()
        policy: DiffusersPolicy = module.policy
        found.weight_bytes = sum(
            one.untyped_storage().nbytes() for one in (*policy.parameters(), *policy.buffers())
        )
        with inside():
            cli.trainer.fit(module, datamodule=cli.datamodule)
        # The trainer has moved the policy to the CPU.
        found.device = torch.device("cpu" if recipe.on_cpu else "cuda")
        found.parameters = sum(one.numel() for one in policy.denoiser.parameters())
        if policy.quantize is None:
            found.flops = forward_operations(policy)
        found.rate = matrix_rate(found.device, policy.compute_dtype)
    return found


def build(recipe: Recipe, folder: Path, iterations: int = 1) -> NoRun:
    """Build the trainer, the module and the data of a recipe; the policy is not built yet.

    Args:
        recipe: What is trained.
        folder: For what is written, and for the pipeline's configuration.
        iterations: How many are trained.

    Returns:
        The command line that holds them.
    """
    RandomWeights.tiny = recipe.tiny
    quieten_lightning()
    return NoRun(
        [
            *("fit", *_files(recipe, folder)),
            *("--trainer.default_root_dir", str(folder)),
            *("--trainer.logger", "false", "--trainer.num_sanity_val_steps", "0"),
            *("--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1"),
            *("--data.batches_per_epoch", str(iterations)),
            *("--trainer.enable_checkpointing", "false"),
            *("--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false"),
            *("--trainer.without_callbacks", f"[{','.join(_without(recipe))}]"),
            *_few(recipe),
            *_short(recipe),
            *("--trainer.accelerator", "cpu" if recipe.on_cpu else "gpu"),
            *recipe.arguments,
        ]
    )


def _files(recipe: Recipe, temporary: Path) -> list[str]:
    """The files and settings that make a recipe; what it needs to be built goes into a folder."""
    published = recipe.model != QUICKSTART
    if published:
        names = [f"models/{recipe.model}", "rewards/jpeg"]
    else:  # methods of the policy gradient are laid over its own form of the quickstart
        names = [recipe.model, "overlays/aegpo"]
    names += [f"hardware/{name}" for name in recipe.hardware]
    names += [f"overlays/{name}" for name in recipe.overlays]
    files = [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    if not published:
        return files
    folder = write_pipeline(recipe.model, temporary / "pipeline")
    return [
        *files,
        *("--model.policy.class_path", f"random_weights.{CLASSES[recipe.model].__name__}"),
        *("--model.policy.init_args.pretrained", str(folder)),
        *("--model.policy.init_args.embedding_cache", f"{temporary}/embeddings"),
        *("--model.init_args.evaluation_rewards", "[]"),
    ]


def _without(recipe: Recipe) -> list[str]:
    """Callbacks that are left out: those that write, and those that the overlays leave out."""
    left = ["SampleLogger", "ScoreTable", "RolloutCheckpoint", "RolloutProgressBar"]
    for name in recipe.overlays:
        config = yaml.safe_load((CONFIGS / f"overlays/{name}.yaml").read_text(encoding="utf-8"))
        left += config.get("trainer", {}).get("without_callbacks", [])
    return left


def _few(recipe: Recipe) -> tuple[str, ...]:
    """Settings for the number of images that was asked for."""
    if recipe.images is None:
        return ()
    if recipe.model == QUICKSTART:  # whose overlays have allocators of their own
        return ("--data.batch_size", str(max(2, recipe.images // 12)))
    each = str(max(2, recipe.images // 2))
    return (
        *("--data.init_args.batch_size", "2"),
        *("--model.allocator.init_args.low", each, "--model.allocator.init_args.high", each),
    )


def _short(recipe: Recipe) -> tuple[str, ...]:
    """Settings that make a small network's run short."""
    if not recipe.tiny or recipe.model == QUICKSTART:
        return ()
    return (
        *("--model.policy.init_args.resolution", "64", "--model.num_steps", "4"),
        *("--model.step_selector.init_args.top_k", "2"),
    )


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a matrix product, the best of five."""
    size = size if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
