"""Every family of models as a tiny random pipeline: trained, resumed and exported on the card."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from gpu.parts import Emit, Settings

from aegpo.export.check import HALF_IMAGE_TOLERANCE, IMAGE_TOLERANCE, check_export, image_difference
from aegpo.noise import KeyedNoise
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.rollout.loop import start_noise
from callbacks.rollout_checkpoint import RolloutCheckpoint

STEPS = 5
PROMPTS = ["a red circle", "two blue stars on one green triangle", "a"]
INDEX = torch.tensor([7, 3, 5], device="cpu")
FP32_RATIO = 1e-5
"""Accepted deviation of the first ratio from 1 by rounding."""
UNREACHED = {"QwenImage": "attn.to_add_out"}
"""Adapters that no gradient reaches: the last block's text goes nowhere."""


class Watch(L.Callback):
    """Keeps what every iteration logged, and which adapters had a finite gradient."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not hasattr(self, "handles"):
            self.handles = [
                parameter.register_post_accumulate_grad_hook(partial(self._note, name))
                for name, parameter in pl_module.policy.named_parameters()
                if parameter.requires_grad
            ]
            self.seen: dict[str, bool | None] = {
                name: None
                for name, parameter in pl_module.policy.named_parameters()
                if parameter.requires_grad
            }

    def _note(self, name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.seen[name] = self.seen[name] is not False and bool(parameter.grad.isfinite().all())

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def in_fp32(item: str, settings: Settings, emit: Emit) -> None:
    """Try a family in fp32."""
    try_family(item, settings, emit, half=False)


def in_bf16(item: str, settings: Settings, emit: Emit) -> None:
    """Try a family with bfloat16 weights under autocast."""
    try_family(item, settings, emit, half=True)


def try_family(name: str, settings: Settings, emit: Emit, *, half: bool) -> None:
    """Draw, train, resume and export one family.

    Args:
        name: Its class in `aegpo.policies`.
        settings: Whether the CPU stands in for the card.
        emit: Takes the rows.
        half: Whether frozen weights are bfloat16 and the trainer runs in bf16-mixed.
    """
    from tiny_families import FAMILIES
    from tiny_training import entropy_callbacks, tiny_data, tiny_module

    family = next(one for one in FAMILIES if one.name == name)
    device = "cpu" if settings.tiny else "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        family.pipeline().save_pretrained(folder / "pipeline")
        arguments = family.arguments(folder / "pipeline", lora_rank=4)
        if half:
            arguments["dtype"] = "bfloat16"
        policy = partial(family.policy, **arguments)
        # fp32 means fp32: the matrix units' own rounding would hide a wrong image.
        torch.set_float32_matmul_precision("highest")
        _compare_images(policy().to(device), emit, half)

        def train(epochs: int, ckpt_path: str | None) -> tuple[Any, Watch]:
            watch = Watch()
            keep = RolloutCheckpoint(dirpath=str(folder / "checkpoints"))
            module = tiny_module(folder, policy=policy, lr=1e-3)
            trainer = L.Trainer(
                accelerator="cpu" if settings.tiny else "gpu",
                devices=1,
                precision="bf16-mixed" if half else "32-true",
                max_epochs=epochs,
                logger=False,
                callbacks=[*entropy_callbacks(), keep, watch],
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=1,
                default_root_dir=folder,
            )
            trainer.fit(module, tiny_data(folder), ckpt_path=ckpt_path, weights_only=True)
            return module, watch

        module, watch = train(1, None)
        first = max(row["ratio/first_max_dev"] for row in watch.rows)
        if half:  # where that is 0 by construction; kernels round other batches otherwise
            emit("ratio to the rollout", max(row["ratio/rollout_max_dev"] for row in watch.rows))
        else:
            emit("first ratio", first, first <= FP32_RATIO, f"within {FP32_RATIO:.0e} of 1")
        finite = sum(seen is True for seen in watch.seen.values())
        without = [one for one, seen in watch.seen.items() if seen is None]
        dead = [one for one in without if UNREACHED.get(name, "nothing") in one]
        emit(
            *("gradients of adapters", f"{finite} of {len(watch.seen)} finite"),
            *(finite + len(dead) == len(watch.seen), f"all finite, {len(dead)} out of reach"),
        )
        spent = module.policy.evaluations.total
        last = str(folder / "checkpoints/last.ckpt")
        module, watch = train(2, last)
        went_on = module.iteration == 4 and module.policy.evaluations.total > spent
        emit("resume", f"{module.iteration} iterations", went_on, "2, then 4")
        check, _, _ = check_export(
            module.policy.to(device), folder / "export", PROMPTS, INDEX, STEPS, KeyedNoise(0)
        )
        emit("export", str(check), check.passed)


def _compare_images(policy: DiffusersPolicy, emit: Emit, half: bool) -> None:
    """A deterministic rollout is the pipeline's own image."""
    noise = KeyedNoise(0)
    ours = deterministic_rollout(policy, PROMPTS, INDEX, STEPS, noise).images
    assert ours is not None
    pipeline: Any = policy.load_clean_pipeline()
    pipeline.scheduler = policy.sampling_scheduler(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    start = start_noise(noise, INDEX, torch.zeros_like(INDEX), policy.latent_shape)
    with torch.no_grad():
        theirs = policy.pipeline_images(pipeline.to(policy.device), PROMPTS, start, STEPS)
    apart = image_difference(ours, theirs)
    accepted = HALF_IMAGE_TOLERANCE if half else IMAGE_TOLERANCE
    emit("rollout against pipeline", apart, apart <= accepted, f"mean of pixels <= {accepted:.0e}")
