"""Sigma schedules as the model's own diffusers scheduler would run them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

Spacing = Literal["scheduler", "uniform"]


def scheduler_sigmas(
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_steps: int,
    spacing: Spacing = "scheduler",
    mu: float | None = None,
) -> Tensor:
    """The schedule of a flow-matching model, from its scheduler's configuration.

    The scheduler itself is not touched: a copy is set up and read.

    Args:
        scheduler: The pipeline's scheduler.
        num_steps: Denoising steps T, 1 or more.
        spacing: ``"scheduler"`` is what the SD3 pipelines run by default, evenly spaced between the
            scheduler's already shifted end-points and shifted again, so that the last step is tiny
            (T = 10, shift 3: 0.278, 0.009, 0). ``"uniform"`` shifts ``linspace(1, 1/T, T)``, as the
            FLUX pipelines do; with shift 1 it is ``1, 1 - 1/T, ..., 0``.
        mu: Shift of a scheduler with ``use_dynamic_shifting``, see `resolution_mu`; None otherwise.

    Returns:
        (T + 1,) fp32, strictly decreasing from 1 to 0.

    Raises:
        TypeError: If the scheduler is not a flow-matching Euler scheduler.
        ValueError: If an argument is out of range, mu is missing, or the schedule that comes out
            does not fall from 1 to 0.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise TypeError(
            f"sigmas come from a FlowMatchEulerDiscreteScheduler, but this is a "
            f"{type(scheduler).__name__}; choose a flow-matching pipeline"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, but is {num_steps}")
    if scheduler.config.use_dynamic_shifting and mu is None:
        raise ValueError(
            "this scheduler shifts by resolution (use_dynamic_shifting); "
            "pass mu=resolution_mu(scheduler, num_tokens)"
        )
    if spacing not in ("scheduler", "uniform"):
        raise ValueError(f'spacing must be "scheduler" or "uniform", but is {spacing!r}')
    copied = copy.deepcopy(scheduler)
    if spacing == "scheduler":
        copied.set_timesteps(num_steps, mu=mu, device="cpu")
    else:
        copied.set_timesteps(sigmas=even_sigmas(num_steps), mu=mu, device="cpu")
    sigmas: Tensor = copied.sigmas.detach().to("cpu", torch.float32).clone()
    # A rollout starts at pure noise, and Flow-SDE singles out sigma = 1, so rounding in the shift
    # must not leave 0.9999999 there.
    if abs(float(sigmas[0]) - 1) < 1e-5:
        sigmas[0] = 1.0
    falls = bool((sigmas[1:] < sigmas[:-1]).all())
    if len(sigmas) != num_steps + 1 or sigmas[0] != 1 or sigmas[-1] != 0 or not falls:
        raise ValueError(
            f"a schedule must fall from 1 to 0 in {num_steps} steps, but this scheduler gives "
            f"{[round(sigma, 5) for sigma in sigmas.tolist()]}; lower num_steps or change the "
            "scheduler's configuration"
        )
    return sigmas


def even_sigmas(num_steps: int) -> list[float]:
    """``linspace(1, 1/T, T)``, what the spacing "uniform" hands to a scheduler or a pipeline."""
    even: list[float] = np.linspace(1.0, 1.0 / num_steps, num_steps).tolist()
    return even


def with_shift(scheduler: Any, shift: float | None) -> Any:
    """The scheduler with another constant shift, sigma -> s sigma / (1 + (s - 1) sigma).

    Args:
        scheduler: The pipeline's scheduler; it stays as it is.
        shift: s, above 0: 1 leaves sigmas as they are spaced, more spends more steps on high noise
            levels (SD 3 was published with 3; arXiv 2403.03206, eq. 23). None for the scheduler's.

    Returns:
        A scheduler of the same class and configuration but for the shift.

    Raises:
        ValueError: If the scheduler shifts by resolution.
    """
    if shift is None:
        return scheduler
    refuse_shift_by_resolution(scheduler.config, shift)
    with torch.device("cpu"):  # its sigmas are made on the default device
        return type(scheduler).from_config(scheduler.config, shift=shift)


def refuse_shift_by_resolution(config: Mapping[str, Any], shift: float) -> None:
    """Raise ValueError if a scheduler of this configuration has no constant shift to replace."""
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            f"shift={shift}: the scheduler of this model shifts by resolution "
            "(use_dynamic_shifting); leave `shift` out"
        )


def resolution_mu(scheduler: FlowMatchEulerDiscreteScheduler, num_tokens: int) -> float:
    """The dynamic shift for an image size: linear in the number of image tokens, as in FLUX.

    Args:
        scheduler: A scheduler with ``use_dynamic_shifting``.
        num_tokens: Image tokens, i.e. patches of the latent; 1,024 for FLUX at 512 x 512.

    Returns:
        mu, for `scheduler_sigmas`; 0.63 for those 1,024 tokens.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return float(config.base_shift + (num_tokens - config.base_image_seq_len) * slope)
