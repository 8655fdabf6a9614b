"""A training on the tiny random pipeline, in a second or two: what integration tests build."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.allocation import Allocator, MedianSplitAllocator
from aegpo.entropy import EntropyRecorder
from aegpo.exploration import EntropyPeaks, StepSelector
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.rewards.base import Reward
from aegpo.sde import FlowSDE
from callbacks.cost_logger import CostLogger
from callbacks.entropy_probe import EntropyProbe
from callbacks.prompt_reweighter import PromptReweighter
from datamodules.prompt_datamodule import PromptDataModule
from lightning_modules.aegpo_module import AEGPOModule

PROMPTS = [
    f"a {color} {shape}"
    for color in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "triangle")
]


class Redness(Reward):
    """How much redder than green the image is."""

    name = "redness"
    range = (-1.0, 1.0)
    deterministic = True

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Mean red minus mean green."""
        return (images[:, 0] - images[:, 1]).flatten(1).mean(1)


def tiny_policy(folder: Path) -> partial[StableDiffusion3]:
    """What builds the policy of `tiny_module`."""
    return partial(StableDiffusion3, str(folder), lora_rank=4, max_sequence_length=4)


def tiny_module(
    folder: Path,
    *,
    step_selector: StepSelector | None = None,
    allocator: Allocator | None = None,
    reward: Reward | None = None,
    lr: float = 1e-3,
    **settings: Any,
) -> AEGPOModule:
    """AEGPO on the tiny pipeline, SD3 by default, 5 steps, groups of 2 or 4."""
    settings = {
        "policy": tiny_policy(folder),
        "sde": FlowSDE(),
        "num_steps": 5,
        "micro_batch_size": 8,
        "clip_range": 1e-3,
    } | settings
    return AEGPOModule(
        reward=reward or Redness(),
        step_selector=step_selector or EntropyPeaks(top_k=2),
        allocator=allocator or MedianSplitAllocator(low=2, high=4),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        **settings,
    )


def tiny_data(tmp_path: Path, **settings: Any) -> PromptDataModule:
    """Twelve prompts in two categories, four an iteration."""
    file = tmp_path / "prompts.jsonl"
    rows = [
        f'{{"prompt": "{prompt}", "category": "{"warm" if number < 6 else "cold"}"}}'
        for number, prompt in enumerate(PROMPTS)
    ]
    file.write_text("\n".join(rows))
    settings = {
        "batch_size": 4,
        "batches_per_epoch": 2,
        "val_images": 6,
        "val_batch_size": 4,
    } | settings
    return PromptDataModule(str(file), val_file=str(file), **settings)


def entropy_callbacks(**settings: Any) -> list[L.Callback]:
    """Both entropy loops and the cost log; the settings are the probe's."""
    probe = EntropyProbe(EntropyRecorder(rows=None), **settings)
    return [probe, PromptReweighter(), CostLogger()]


def tiny_trainer(tmp_path: Path, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    """A quiet trainer on the CPU."""
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    } | settings
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
