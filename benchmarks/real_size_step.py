"""Trains a few iterations of a full-size model with random weights, and says where the time goes.

    python benchmarks/real_size_step.py sd35_medium
    python benchmarks/real_size_step.py flux1_dev --iterations 3
    python benchmarks/real_size_step.py sd35_medium --tiny     # the same path in seconds, on a CPU

The recipe of configs/models and configs/hardware/1x80gb.yaml in bf16, with the JPEG reward.
Denoiser and decoder have the published sizes; prompts get random embeddings in place of the text
encoders', which a run caches anyway. Printed are seconds and evaluations by phase, memory, the
share of the floor (FLOPs of all evaluations over the measured rate of a bf16 matrix product) and
`ratio/first_max_dev`. The first iteration warms up and is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import diffusers
import lightning
import torch
from published_pipelines import PIPELINES, write_pipeline
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.flux import Flux
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from lightning_modules.cli.lightning_cli import AEGPOCLI

CONFIGS = Path(__file__).parents[1] / "configs"
TINY: dict[str, dict[str, Any]] = {
    "sd35_medium": {
        **{"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128},
        **{"dual_attention_layers": [0], "pos_embed_max_size": 64},
    },
    "flux1_dev": {
        **{"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
        **{"attention_head_dim": 32, "axes_dims_rope": [8, 12, 12]},
    },
}
"""What `--tiny` changes in the published configuration of the denoiser."""


class RandomWeights(DiffusersPolicy):
    """A policy of published size that needs no files: see `published_pipelines`."""

    model: str
    tiny = False
    text_shape: tuple[int, int]
    pooled_size: int

    def load_clean_pipeline(self) -> Any:
        """Builds denoiser and decoder with random weights, on the GPU if there is one."""
        class_name, parts = PIPELINES[self.model]
        built: dict[str, Any] = {}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            for name in ("transformer", "vae"):
                _, part_class, config = parts[name]
                small = TINY[self.model] if self.tiny and name == "transformer" else {}
                part = getattr(diffusers, part_class)(**{**config, **small})
                built[name] = part.to(self._frozen_dtype).eval()
        absent = {
            name: None
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")
            if name in getattr(diffusers, class_name)._optional_components or name in parts
        }
        tokenizers = {
            name.replace("text_encoder", "tokenizer"): None for name in absent if "text" in name
        }
        dynamic = self.model == "flux1_dev"
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=dynamic
        )
        return getattr(diffusers, class_name)(**built, **absent, **tokenizers, scheduler=scheduler)

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Random embeddings, fixed for each text."""
        rows = []
        for text in texts:
            generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
            embeds = torch.randn(1, *self.text_shape, generator=generator)
            rows.append((embeds, torch.randn(1, self.pooled_size, generator=generator)))
        embeds = torch.cat([row[0] for row in rows]).to(self.device, self._frozen_dtype)
        pooled = torch.cat([row[1] for row in rows]).to(self.device, self._frozen_dtype)
        return Conditioning(embeds, pooled, torch.ones(embeds.shape[:2]).bool().to(self.device))


class RandomStableDiffusion3(RandomWeights, StableDiffusion3):
    """Stable Diffusion 3.5 Medium: 77 CLIP tokens and 256 of T5."""

    model, text_shape, pooled_size = "sd35_medium", (333, 4096), 2048


class RandomFlux(RandomWeights, Flux):
    """FLUX.1-dev: 512 tokens of T5."""

    model, text_shape, pooled_size = "flux1_dev", (512, 4096), 768


class Collect(lightning.Callback):
    """Keeps the logged numbers of every iteration."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})


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
    latents = torch.randn(1, *policy.latent_shape, device=policy.device)
    cond = policy.encode(["a cat"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.predict(latents, torch.ones(1, device=policy.device), cond)
    return float(counter.get_total_flops())


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(TINY))
    parser.add_argument("--iterations", type=int, default=3, help="the first is not counted")
    parser.add_argument("--tiny", action="store_true", help="a small model, for a look at the path")
    parser.add_argument("arguments", nargs="*", help="after --: more arguments of aegpo fit")
    options = parser.parse_args()
    RandomWeights.tiny = options.tiny
    policy_class = "RandomStableDiffusion3" if options.model == "sd35_medium" else "RandomFlux"
    sys.modules["real_size_step"] = sys.modules["__main__"]  # the name in the class path below
    files = (f"models/{options.model}", "rewards/jpeg", "hardware/1x80gb")
    arguments = [part for file in files for part in ("--config", str(CONFIGS / f"{file}.yaml"))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(write_pipeline(options.model, Path(temporary) / "pipeline"))
        small = [
            *("--model.policy.init_args.resolution", "64", "--data.init_args.batch_size", "2"),
            *("--model.allocator.init_args.low", "2", "--model.allocator.init_args.high", "2"),
        ]
        cpu = [] if torch.cuda.is_available() else ["--trainer.accelerator", "cpu"]
        collect = Collect()
        cli = NoRun(
            [
                "fit",
                *arguments,
                *("--model.policy.class_path", f"real_size_step.{policy_class}"),
                *("--model.policy.init_args.pretrained", folder),
                *("--model.policy.init_args.embedding_cache", "null"),
                *("--model.init_args.evaluation_rewards", "[]"),
                *("--trainer.default_root_dir", temporary),
                *("--trainer.logger", "false", "--trainer.num_sanity_val_steps", "0"),
                *("--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1"),
                *("--trainer.limit_train_batches", str(options.iterations)),
                *("--trainer.enable_checkpointing", "false"),
                *("--trainer.without_callbacks", "[SampleLogger,ScoreTable,RolloutCheckpoint]"),
                *(small if options.tiny else []),
                *cpu,
                *options.arguments,
            ]
        )
        cli.trainer.callbacks.append(collect)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    report(cli.model.policy, collect.rows)


class NoRun(AEGPOCLI):
    """The command line that builds everything and leaves the running to `main`."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def report(policy: DiffusersPolicy, rows: list[dict[str, float]]) -> None:
    """Print the table for the iterations after the first."""
    kept = rows[1:] or rows
    seconds = {
        key.removeprefix("seconds/"): sum(row.get(key, 0.0) for row in kept) / len(kept)
        for key in kept[-1]
        if key.startswith("seconds/")
    }
    before = rows[-1 - len(kept)] if len(rows) > len(kept) else {}
    names = ("evaluations", "rollout", "probe", "reference", "update")
    spent = {
        name: (rows[-1][f"cost/{name}"] - before.get(f"cost/{name}", 0.0)) / len(kept)
        for name in names
    }
    rate, flops = matrix_rate(policy.device), flops_of_one_row(policy)
    table = Table("phase", "seconds", "evaluations", title=f"{type(policy).__name__}, an iteration")
    for phase, duration in seconds.items():
        cost = spent.get(phase)
        table.add_row(phase, f"{duration:.2f}", "" if cost is None else f"{cost:,.0f}")
    console, total = Console(), sum(seconds.values())
    console.print(table)
    floor = spent["evaluations"] * flops / rate
    frozen = sum(parameter.numel() for parameter in policy.denoiser.parameters())
    console.print(
        f"denoiser {frozen / 1e9:.2f} B parameters; {flops / 1e12:.2f} TFLOP an evaluation; bf16 "
        f"matrix product {rate / 1e12:.0f} TFLOP/s\n"
        f"floor {floor:.2f} s of {total:.2f} s: {100 * floor / total:.0f} %; peak memory "
        f"{rows[-1]['memory/peak_gib']:.1f} GiB; "
        f"ratio/first_max_dev {max(row['ratio/first_max_dev'] for row in rows):.1e}"
    )


if __name__ == "__main__":
    main()
