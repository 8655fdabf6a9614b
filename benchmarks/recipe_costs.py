"""What the recipes cost by arithmetic, as the table of docs/real_models.md.

    python benchmarks/recipe_costs.py [model ...]

Nothing is measured and nothing is fetched. Evaluations of an iteration and memory are those of
`aegpo plan` on the published architectures without weights. FLOPs of an evaluation are counted in a
forward pass on the meta device; time is their product over 40 % of a published dense bf16 peak.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import open_clip
import torch
from published_pipelines import NUM_PARAMETERS, PIPELINES, write_pipeline
from torch.utils.flop_counter import FlopCounterMode

from aegpo.policies.diffusers_policy import DiffusersPolicy
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


def flops(policy: DiffusersPolicy) -> float:
    """Of one row through the denoiser and its adapters; a multiplication and an addition are 2."""
    latents = torch.zeros(1, *policy.latent_shape, device="meta")
    sigma = torch.zeros(1, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.predict(latents, sigma, policy.blank_conditioning(1))
    return float(counter.get_total_flops())


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


def row(model: str, reward: str, hardware: list[str], folder: Path) -> str:
    plan = plan_recipe(model, reward, hardware, folder)
    assert plan.size is not None and plan.memory is not None and plan.total is not None
    assert plan.length.iterations is not None
    billions = sum(p.numel() for p in plan.size.policy.denoiser.parameters()) / 1e9
    adapters = 0 if plan.size.policy.full_finetuning else plan.size.trainable / 1e9
    assert abs(billions - adapters - NUM_PARAMETERS[model]) < 0.01
    evaluations = plan.total.high / plan.length.iterations.high
    one = flops(plan.size.policy)
    gpu, peak = PEAK[hardware[0].partition("x")[2].partition("_")[0]]
    seconds = evaluations * one / (UTILIZATION * peak * plan.processes)
    stays, turns = sum(plan.memory.stays.values()), plan.memory.takes_turns
    largest = max(turns, key=lambda name: turns[name])
    rewards = reward_bytes(reward)
    cells = [
        *(model, reward, " + ".join(hardware), f"{plan.batch_size}"),
        f"{plan.iteration.images.high:,.0f}",
        f"{evaluations:,.0f}",
        f"{one / 1e12:.2f}",
        f"{seconds:,.0f} s ({plan.processes} {gpu})",
        f"{stays / 1e9:.1f}",
        f"{turns[largest] / 1e9:.1f} ({largest})",
        f"{rewards / 1e9:.1f}",
        f"{(stays + turns[largest] + rewards) / 1e9:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(models: list[str]) -> None:
    heads = [
        *("model", "reward", "hardware", "prompts", "images", "evaluations"),
        *("TFLOPs each", "time by arithmetic", "stays, GB", "largest in turn, GB"),
        *("rewards, GB", "sum, GB"),
    ]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    with tempfile.TemporaryDirectory() as folder:
        known = {name: write_pipeline(name, Path(folder) / name) for name in PIPELINES}
        for model, reward, hardware in RECIPES:
            if model in models or not models:
                print(row(model, reward, hardware, known[model]), flush=True)


if __name__ == "__main__":
    models, sys.argv[1:] = sys.argv[1:], []  # Lightning looks at them too
    main(models)
