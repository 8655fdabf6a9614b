"""What the recipes cost by arithmetic, as the tables of docs/real_models.md.

    python benchmarks recipes [model ...]
    python benchmarks recipes --quick

Nothing is measured and nothing is fetched. Evaluations of an iteration and memory are those of
`aegpo plan` on the published architectures without weights. FLOPs of an evaluation are counted in a
forward pass on the meta device; time is their product over 40 % of a published dense bf16 peak. Of
that time are the images a second and the GPU-hours, which leave decoding and rewards out; phases
are shares of the evaluations. `python benchmarks phases` measures them on a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from published_pipelines import NUM_PARAMETERS, PIPELINES, write_pipeline

from aegpo.entropy.cost import forward_operations
from aegpo.utilities.tables import markdown_table
from lightning_modules.cli.lightning_cli import AEGPOCLI
from lightning_modules.commands.plan.plan import make_plan
from lightning_modules.commands.plan.run_plan import RunPlan

CONFIGS = Path(__file__).parents[1] / "configs"
UTILIZATION = 0.4
PEAK = {"24gb": ("RTX 4090", 165e12), "80gb": ("H100", 989e12)}
"""Published dense bf16 peak of a GPU with this memory, in FLOP/s."""
RECIPES = [
    ("sd35_medium", "pickscore", ["1x24gb"]),
    ("sd35_medium", "pickscore", ["1x80gb"]),
    ("sd35_medium", "geneval", ["8x80gb"]),
    ("sd35_medium", "ocr", ["8x80gb"]),
    ("flux1_dev", "hpsv21", ["1x24gb", "quantized"]),
    ("flux1_dev", "hpsv21", ["1x80gb"]),
    ("flux1_dev", "hpsv21", ["8x80gb"]),
    ("flux1_dev", "hpsv21", ["8x80gb_full_flux"]),
    ("sdxl", "aesthetic", ["1x24gb"]),
    ("sdxl", "jpeg", ["1x80gb"]),
    ("sdxl", "aesthetic", ["8x80gb"]),
    ("sd15", "aesthetic", ["1x24gb"]),
    ("sd15", "jpeg", ["1x80gb"]),
    ("sd15", "aesthetic", ["8x80gb"]),
]
HEADS = (
    *("model", "reward", "hardware", "prompts", "images", "evaluations"),
    *("TFLOPs each", "time by arithmetic", "stays, GB", "largest in turn, GB"),
    *("rewards, GB", "sum, GB"),
)
PHASES = ("rollout", "probe", "reference", "update")
SPEED = ("recipe", "images a second", "GPU-hours per 100,000 images", *PHASES)
MASK2FORMER = 0.069e9
"""Parameters of Mask2Former with Swin-S, which is not built here."""


class Planner(AEGPOCLI):
    """`aegpo plan` that keeps the plan instead of printing it."""

    made: RunPlan

    def plan(self, processes: int | None = None, **_: object) -> None:
        spread = self.config.plan.trainer.strategy == "fsdp2"
        self.made = make_plan(
            self.trainer, self.model, self.datamodule, processes or 1, spread=spread
        )


def plan_recipe(model: str, reward: str, hardware: list[str], folder: Path) -> RunPlan:
    names = [f"models/{model}", f"rewards/{reward}", *(f"hardware/{name}" for name in hardware)]
    arguments = [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    pretrained = f"--model.policy.init_args.pretrained={folder}"
    processes = hardware[0].partition("x")[0]
    return Planner(["plan", *arguments, pretrained, "--processes", processes]).made


def clip_bytes(name: str, image_only: bool = False) -> float:
    with torch.device("meta"):
        network = open_clip.CLIP(**open_clip.get_model_config(name))
    part = network.visual if image_only else network
    return 4.0 * sum(parameter.numel() for parameter in part.parameters())


def reward_bytes(reward: str) -> float:
    """Weights of the networks of a reward file, all fp32."""
    large, huge = clip_bytes("ViT-L-14"), clip_bytes("ViT-H-14")
    aesthetic = clip_bytes("ViT-L-14", image_only=True)
    return {
        "pickscore": huge + aesthetic,
        "hpsv21": huge + aesthetic,
        "aesthetic": huge + aesthetic,
        "jpeg": aesthetic,
        "ocr": aesthetic,
        "geneval": large + 4 * MASK2FORMER + aesthetic,
    }[reward]


@dataclass(frozen=True)
class Costs:
    """A recipe's plan, and what follows from it.

    Args:
        names: Of the model, the reward and the hardware files.
        plan: Its plan.
        flops: Of one row through the denoiser.
    """

    names: tuple[str, str, str]
    plan: RunPlan
    flops: float

    @classmethod
    def of(cls, model: str, reward: str, hardware: list[str], folder: Path) -> Costs:
        """Plan a recipe on the architecture in a folder, and check its number of parameters."""
        plan = plan_recipe(model, reward, hardware, folder)
        assert plan.size is not None
        billions = sum(p.numel() for p in plan.size.policy.denoiser.parameters()) / 1e9
        adapters = 0 if plan.size.policy.full_finetuning else plan.size.trainable / 1e9
        assert abs(billions - adapters - NUM_PARAMETERS[model]) < 0.01
        return cls(
            (model, reward, " + ".join(hardware)), plan, forward_operations(plan.size.policy)
        )

    def evaluations(self, purpose: str | None = None) -> float:
        """Of an iteration, for a purpose or for all of training."""
        assert self.plan.total is not None and self.plan.evaluations is not None
        assert self.plan.length.iterations is not None
        total = self.plan.total if purpose is None else self.plan.evaluations[purpose]
        return total.high / self.plan.length.iterations.high

    @property
    def gpu(self) -> tuple[str, float]:
        """Its name and peak."""
        return PEAK[self.names[2].partition("x")[2].partition(" ")[0].partition("_")[0]]

    @property
    def seconds(self) -> float:
        """Of an iteration."""
        speed = UTILIZATION * self.gpu[1] * self.plan.processes
        return self.evaluations() * self.flops / speed

    def row(self) -> list[str]:
        """Evaluations, time and memory."""
        assert self.plan.memory is not None
        stays, turns = sum(self.plan.memory.stays.values()), self.plan.memory.takes_turns
        largest = max(turns, key=lambda name: turns[name])
        rewards = reward_bytes(self.names[1])
        return [
            *(*self.names, f"{self.plan.batch_size}"),
            f"{self.plan.iteration.images.high:,.0f}",
            f"{self.evaluations():,.0f}",
            f"{self.flops / 1e12:.2f}",
            f"{self.seconds:,.0f} s ({self.plan.processes} {self.gpu[0]})",
            f"{stays / 1e9:.1f}",
            f"{turns[largest] / 1e9:.1f} ({largest})",
            f"{rewards / 1e9:.1f}",
            f"{(stays + turns[largest] + rewards) / 1e9:.1f}",
        ]

    def speed(self) -> list[str]:
        """Images a second, and the phases."""
        images = float(self.plan.iteration.images.high) / self.seconds
        phases = [self.evaluations(purpose) / self.evaluations() for purpose in PHASES]
        return [
            " + ".join(self.names),
            f"{images:.2f}",
            f"{self.plan.processes * 100_000 / images / 3600:,.0f}",
            *(f"{100 * share:.0f} %" for share in phases),
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks recipes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("models", nargs="*", help=", ".join(PIPELINES))
    parser.add_argument("--quick", action="store_true", help="one recipe")
    options = parser.parse_args(arguments)
    asked = [
        recipe
        for recipe in (RECIPES[-3:-2] if options.quick else RECIPES)
        if recipe[0] in options.models or not options.models
    ]
    with tempfile.TemporaryDirectory() as folder:
        known = {name: write_pipeline(name, Path(folder) / name) for name in PIPELINES}
        costs = [
            Costs.of(model, reward, hardware, known[model]) for model, reward, hardware in asked
        ]
    print(markdown_table(HEADS, [one.row() for one in costs], text_columns=3))
    print(f"\n{markdown_table(SPEED, [one.speed() for one in costs])}")


if __name__ == "__main__":
    main()
