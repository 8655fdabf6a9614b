"""Trainings that one process and two ranks do alike, and what they leave behind."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_families import FAMILIES
from tiny_training import entropy_callbacks, tiny_data, tiny_module

from aegpo.policies.fsdp.sharding import gathered
from lightning_modules.training.fsdp2 import FSDP2


class AdamW8bit(torch.optim.AdamW):
    """Says that it comes from bitsandbytes, whose own optimizers want a GPU."""

    __module__ = "bitsandbytes.optim.adamw"


OPTIMIZERS = {one.__name__: one for one in (torch.optim.AdamW, AdamW8bit)}


@dataclass
class Case:
    """One training.

    Attributes:
        family: Name of the policy's class.
        pipeline: Folder of the family's tiny pipeline.
        policy: Further arguments of the policy.
        settings: Further arguments of the module.
        data: Further arguments of the data.
        trainer: Further arguments of the trainer.
        callbacks: Names of further callbacks and their arguments.
        probe: Arguments of the entropy probe; None for no probe.
        ckpt_path: Checkpoint to go on from.
        optimizer: Name of the optimizer's class.
    """

    family: str
    pipeline: Path
    policy: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: list[L.Callback] = field(default_factory=list)
    probe: dict[str, Any] | None = field(default_factory=dict)
    ckpt_path: str | None = None
    optimizer: str = "AdamW"


class Trace(L.Callback):
    """Keeps what every iteration logged, drew and decided."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.trees: list[dict[str, Any]] = []
        self.local = self.whole = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"prompts": batch.index.tolist(), **logged})
        last = pl_module.last
        for row, index in enumerate(last.batch.index.tolist()):
            mine = last.tree.row == row
            self.trees.append(
                {
                    "iteration": pl_module.iteration,
                    "prompt": index,
                    "steps": last.schedule.stochastic[row].tolist(),
                    "images": int(last.group_sizes[row]),
                    "rewards": last.rewards[mine].tolist(),
                    "latents": float(last.tree.latents[mine].abs().mean()),
                }
            )


def train(case: Case, folder: Path, sharded: bool) -> dict[str, Any]:
    """Train and return numbers, the whole trained tensors as arrays, and the average, if any."""
    kind = next(one for one in FAMILIES if one.name == case.family)
    arguments = {"lora_rank": 2, "lora_seed": 0} if not case.policy.get("full_finetuning") else {}
    policy = partial(kind.policy, **kind.arguments(case.pipeline, **arguments | case.policy))
    trace = Trace()
    probes = [] if case.probe is None else entropy_callbacks(**case.probe)
    callbacks = [*probes, *case.callbacks, trace]
    trainer = L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 2 if sharded else 1,
            "strategy": FSDP2(timeout=timedelta(seconds=60)) if sharded else "auto",
            "max_epochs": 1,
            "callbacks": callbacks,
            "logger": False,
            "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "num_sanity_val_steps": 0,
            **case.trainer,
        }
    )
    settings = {"num_steps": 3, "kl_coeff": 0.01, "micro_batch_size": 4} | case.settings
    module = tiny_module(case.pipeline, policy=policy, **settings)
    # Where a gradient is all but zero, Adam would turn the order of a sum into a step.
    module.optimizer_factory = partial(OPTIMIZERS[case.optimizer], lr=1e-3, eps=1e-4)
    data = {"batch_size": 3, "batches_per_epoch": 5, "val_images": 3, "val_batch_size": 3}
    own = folder / f"rank{os.environ.get('RANK', '')}"  # ranks do not write while others read
    own.mkdir(exist_ok=True)
    prompts = tiny_data(own, **data | case.data)
    trainer.fit(module, prompts, ckpt_path=case.ckpt_path, weights_only=True)
    policy_now = module.policy
    weights = policy_now.trainable_state_dict()
    lockstep = policy_now.lockstep
    return {
        "rows": trace.rows,
        "trees": trace.trees,
        "weights": arrays(weights),
        "averaged": arrays(module.averaged or {}),
        "padded": lockstep.padded if lockstep is not None else 0,
        "local": sum(local(one) for one in policy_now.denoiser.parameters()),
        "whole": sum(one.numel() for one in policy_now.denoiser.parameters()),
    }


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The whole tensors as arrays, which a pipe can carry."""
    whole = gathered({name: tensor.detach() for name, tensor in tensors.items()}, keep=True)
    return {name: tensor.float().cpu().numpy().copy() for name, tensor in whole.items()}


def local(parameter: torch.Tensor) -> int:
    """Numbers of a parameter that this rank holds."""
    to_local = getattr(parameter, "to_local", None)
    return int((parameter if to_local is None else to_local()).numel())


class Lonely(L.Callback):
    """Calls the policy on its own."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Predict one row."""
        policy = pl_module.policy
        latents = torch.zeros(1, *policy.latent_shape)
        policy(latents, torch.ones(1), policy.encode(["a red circle"]))


def refusal(case: Case, folder: Path) -> str:
    """The line with which a spread training ends."""
    try:
        train(case, folder, True)
    except (ValueError, RuntimeError) as error:
        return str(error)
    raise AssertionError("it was not refused")
