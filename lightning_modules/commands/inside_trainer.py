"""Runs work where `predict_step` would run: on the device, with the checkpoint loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, DistributedSampler

from aegpo.prompts import PromptBatch

Weights = Literal["ema", "last"]
"""Which weights of a checkpoint: the average that a callback kept, if one did, or the last ones."""


def inside_trainer(
    trainer: Trainer,
    model: LightningModule,
    batch: PromptBatch,
    work: Callable[[PromptBatch], None],
    ckpt_path: str | None,
    weights_only: bool | None,
    gradients: bool = False,
) -> None:
    """Call `work` once in place of the module's ``predict_step``.

    So it sees the device, the precision and the checkpoint as every other command does, and no
    gradients unless it asks for them.

    Args:
        trainer: A trainer; every one of its processes calls `work`.
        model: The module.
        batch: What is handed to `work`, on the module's device.
        work: What is to be done.
        ckpt_path: Checkpoint of the policy, also ``last`` or ``best``; None for the base.
        weights_only: Passed to the loading of that checkpoint.
        gradients: Whether `work` takes gradients.

    Raises:
        ValueError: If a checkpoint was asked for and there is none.
    """

    def step(batch: PromptBatch, batch_idx: int) -> torch.Tensor:
        if ckpt_path is not None and trainer.ckpt_path is None:
            raise ValueError(f"--ckpt_path {ckpt_path}: no checkpoint was found; give its file")
        with torch.set_grad_enabled(gradients):
            work(batch)
        return torch.empty(0, device="cpu")

    original: Any = model.predict_step
    inference = trainer.predict_loop.inference_mode
    trainer.predict_loop.inference_mode = inference and not gradients  # whose tensors have none
    model.predict_step = step  # type: ignore[method-assign]
    batches: Any = [batch]
    # Of a kind that Lightning leaves alone; its own would deal the batch to one process.
    everywhere: DistributedSampler[Any] = DistributedSampler(
        batches, num_replicas=1, rank=0, shuffle=False
    )
    try:
        with warnings.catch_warnings():
            # Commands leave out on purpose the callbacks of a training, and need nothing of theirs.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
            trainer.predict(
                model,
                dataloaders=DataLoader(batches, batch_size=None, sampler=everywhere),
                ckpt_path=ckpt_path,
                weights_only=weights_only,
                return_predictions=False,
            )
    finally:
        model.predict_step = original  # type: ignore[method-assign]
        trainer.predict_loop.inference_mode = inference
