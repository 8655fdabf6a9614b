"""`aegpo doctor` with a config: is the first update's probability ratio really 1?

The update recomputes the log-probabilities that the rollout stored. If the two differ before
anything was learned (other batch shapes in half precision, another guidance scale, dropout left
on), every clipped ratio after that is partly noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from aegpo.prompts import PromptBatch
from aegpo.utilities.findings import Finding, report
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.commands.doctor.environment import check_writable

SAMPLES = 8
"""Samples evaluated together where the training is to choose how many."""
FP32_TOLERANCE = 1e-6
"""Largest |log ratio| before the first update that counts as 1 when everything is in fp32."""


def doctor(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> bool:
    """Check the first update of a config on one small rollout: ratio 1, finite gradient.

    The check stands in for ``training_step`` in an ordinary ``fit`` of one batch, so it sees the
    device, the precision and the data that training would see.

    Args:
        trainer: A trainer of one process, without loggers, checkpoints and callbacks.
        model: The configured module; one that is no `AEGPOModule` is only reported as built.
        datamodule: The configured data.
        ckpt_path: Checkpoint to start from instead of the base model.
        weights_only: Whether to load that checkpoint without unpickling objects.

    Returns:
        Whether nothing failed.
    """
    built = Finding("config", "ok", f"builds {type(model).__name__}")
    folder = check_writable(Path(trainer.default_root_dir))
    healthy = report([built, folder])
    if not isinstance(model, AEGPOModule):
        report([Finding("ratio", "ok", "not applicable: this module has no policy ratio")])
        return healthy

    findings: list[Finding] = []

    def checked_step(batch: Any, batch_idx: int) -> None:
        deviation = first_log_ratio(model, batch)
        if deviation is None:
            findings.append(Finding("ratio", "ok", "not applicable: this objective has no ratio"))
        else:
            tolerance = ratio_tolerance(model, trainer.precision)
            findings.append(check_ratio(float(deviation), tolerance))
        findings.append(check_gradients(model.parameters()))
        model.zero_grad(set_to_none=True)

    original = model.training_step
    model.training_step = checked_step  # type: ignore[method-assign]
    try:
        trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
    finally:
        model.training_step = original  # type: ignore[method-assign]
    if not findings:
        findings.append(Finding("ratio", "failed", "the data gave no training batch"))
    return report(findings) and healthy


def first_log_ratio(module: AEGPOModule, batch: PromptBatch) -> float | None:
    """Take the first update's backward pass without stepping.

    Args:
        module: The module.
        batch: Prompts to draw.

    Returns:
        Largest |log ratio|: 0 up to rounding if rollout and update score alike; None for an
        objective without a ratio.
    """
    decision = module.decide(batch)
    samples = module.objective.samples(module.collect(batch, decision))
    (update,) = samples.split(batch.index, 1, decision.noise)
    deviation = None
    size = module.micro_batch_size
    for which in update.split(SAMPLES if size == "auto" else size):
        loss = samples.loss(which)
        module.manual_backward(loss.loss.mean())
        if loss.ratio is not None:
            deviation = max(deviation or 0.0, float(loss.ratio.log().abs().max()))
    return deviation


def ratio_tolerance(model: LightningModule, precision: str) -> float:
    """Largest |log ratio| that is harmless before the first update.

    Args:
        model: The module; its ``clip_range``, if it has one, is the yardstick below fp32.
        precision: The trainer's precision, for instance ``32-true`` or ``bf16-mixed``.

    Returns:
        ``FP32_TOLERANCE`` when computing and parameters are fp32, otherwise a tenth of the clip
        range, below which rounding does not decide what is clipped.
    """
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    if precision.startswith(("32", "64")) and not half:
        return FP32_TOLERANCE
    clip_range = getattr(model, "clip_range", None)
    return 0.1 * float(clip_range) if isinstance(clip_range, int | float) else 1e-4


def check_ratio(deviation: float, tolerance: float) -> Finding:
    """Judge the largest |log ratio| of the first update.

    Args:
        deviation: What was measured.
        tolerance: What is accepted.

    Returns:
        ``failed`` above the tolerance and for values that are not finite.
    """
    measured = f"max |log ratio| of the first update {deviation:.1e}, accepted {tolerance:.0e}"
    if math.isfinite(deviation) and deviation <= tolerance:
        return Finding("ratio", "ok", measured)
    return Finding(
        "ratio",
        "failed",
        f"{measured}; use precision 32-true, raise clip_range, or make the micro-batch as large as "
        "the rollout's",
    )


def check_gradients(parameters: Iterable[torch.nn.Parameter]) -> Finding:
    """Check that the first update's gradient exists and is finite.

    Args:
        parameters: All parameters of the module, their gradients as the backward pass left them.

    Returns:
        ``failed`` if a gradient is not finite or there is none.
    """
    gradients = [p.grad for p in parameters if p.requires_grad and p.grad is not None]
    if not gradients:
        return Finding("gradient", "failed", "no trainable parameter received a gradient")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return Finding("gradient", "failed", "it is not finite; check the reward and the precision")
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    return Finding("gradient", "ok", f"norm {norm:.2e} over {len(gradients)} tensors")
