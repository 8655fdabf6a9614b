"""A training on the tiny pipeline as a config, with everything in it that keeps a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tiny_training import PROMPTS

from lightning_modules.cli.resolve_configs import resolve

CALLBACKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("EntropyProbe", {"recorder": {"class_path": "aegpo.entropy.EntropyRecorder"}}),
    ("RunningEntropy", {}),
    ("PromptReweighter", {}),
    ("CurveLogger", {}),
    ("CostLogger", {}),
    ("Canary", {}),
    ("DecisionLog", {}),
    ("EMA", {}),
    ("SampleLogger", {}),
    ("ScoreTable", {}),
    ("RolloutProgressBar", {}),
    ("RolloutCheckpoint", {"dirpath": "runs/tiny/checkpoints", "monitor": "val/redness"}),
)
REWARD = '''
from aegpo.rewards.base import Reward


class Redness(Reward):
    """How much redder than green an image is.

    Args:
        forgets: Adds the number of its calls in this process, which no checkpoint knows.
    """

    name, range, deterministic = "redness", (-1.0, 1.0), True

    def __init__(self, forgets: bool = False):
        self.forgets, self.calls = forgets, 0

    def __call__(self, images, prompts, metadata):
        self.calls += self.forgets
        return (images[:, 0] - images[:, 1]).flatten(1).mean(1) + 1e-3 * self.calls
'''


def write_config(folder: Path, pipeline: Path, **model: Any) -> Path:
    """Write prompts, a reward of a user's own and `tiny.yaml` into a folder; return the config."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "my_module.py").write_text(REWARD)
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "check_val_every_n_epoch": 3,
            "num_sanity_val_steps": -1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": "tiny", "version": ""},
            },
            "callbacks": [
                _class(f"callbacks.{name}", **arguments) for name, arguments in CALLBACKS
            ],
        },
        "model": _class("lightning_modules.AEGPOModule")
        | {
            "init_args": {
                "policy": _class(
                    "aegpo.policies.StableDiffusion3",
                    pretrained=str(pipeline),
                    lora_rank=4,
                    max_sequence_length=4,
                ),
                "reward": _class("my_module.Redness"),
                "sde": _class("aegpo.sde.FlowSDE"),
                "step_selector": _class("aegpo.exploration.EntropyPeaks", top_k=2),
                "allocator": _class("aegpo.allocation.MedianSplitAllocator", low=2, high=4),
                "optimizer": _class("torch.optim.AdamW", lr=1e-2),
                "lr_scheduler": _class(
                    "torch.optim.lr_scheduler.LinearLR", end_factor=0.1, total_iters=20
                ),
                "num_steps": 5,
                "micro_batch_size": 8,
            }
            | model
        },
        "data": _class(
            "datamodules.PromptDataModule",
            train_file="prompts.txt",
            val_file="prompts.txt",
            batch_size=4,
            batches_per_epoch=2,
            val_images=6,
            val_batch_size=4,
        ),
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def resolved(*arguments: str) -> dict[str, Any]:
    """What a config comes to, as `fit --print_config` prints it."""
    return resolve(list(arguments))


def _class(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path} | ({"init_args": arguments} if arguments else {})
