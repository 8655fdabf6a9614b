"""A training whose updates fit themselves into a given memory, alone or as one of two ranks."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from tiny_training import tiny_data, tiny_module
from torch import Tensor

from aegpo.exploration import FixedSteps
from aegpo.policies import StableDiffusion3
from lightning_modules.training import fitting


def train(
    folder: Path,
    tmp_path: Path,
    room: list[float] | None = None,
    checkpoint: str | None = None,
    **settings: Any,
) -> tuple[int | str, bool, dict[str, float], dict[str, Tensor]]:
    """Train one epoch more than the checkpoint.

    Args:
        folder: The tiny pipeline.
        tmp_path: For prompts, and `last.ckpt` at the end.
        room: Free bytes of each rank; None for what there is.
        checkpoint: To go on from.
        **settings: Of the module and, `gradient_checkpointing`, of the policy.

    Returns:
        Samples of a micro-batch, whether activations were computed twice, what was logged, and the
        trained weights.
    """
    original = fitting.free_bytes
    if room is not None:
        fitting.free_bytes = lambda device: room[int(os.environ.get("RANK", "0"))]
    twice = settings.pop("gradient_checkpointing", "auto")
    policy = partial(
        StableDiffusion3,
        str(folder),
        lora_rank=4,
        max_sequence_length=4,
        gradient_checkpointing=twice,
    )
    module = tiny_module(
        folder,
        policy=policy,
        step_selector=FixedSteps([0, 2]),
        lr=1e-2,
        **{"micro_batch_size": "auto", **settings},
    )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        max_epochs=1 if checkpoint is None else 2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    own = tmp_path / os.environ.get("RANK", "0")  # ranks do not write while others read
    own.mkdir(exist_ok=True)
    try:
        trainer.fit(module, tiny_data(own), ckpt_path=checkpoint, weights_only=True)
    finally:
        fitting.free_bytes = original
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = {name: one.clone() for name, one in module.policy.trainable_state_dict().items()}
    return module.micro_batch_size, module.policy.checkpointing, logged, weights
