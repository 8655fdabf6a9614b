"""What to change when memory runs out, said in one line."""

from __future__ import annotations

import traceback

import torch

_ADVICE = {
    "encode": "set offload: true of the policy, so that text encoders leave the device when idle",
    "decode": "lower decode_batch of the policy",
    "score": "lower the reward's batch_size, or run it elsewhere",
    "update": (
        "lower model.micro_batch_size, set gradient_checkpointing: true of the policy, or load its "
        "frozen weights with dtype: bfloat16"
    ),
    "rollout": "lower max_batch of the policy",
    "optimizer_step": "take a smaller lora_rank, or an 8-bit optimizer (overlays/adamw_8bit.yaml)",
    "configure_model": (
        "load the frozen weights with dtype: bfloat16, and keep idle parts in CPU memory with "
        "offload: true"
    ),
}
"""By the function, innermost first, in which memory ran out: what helps there."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device's or the computer's memory was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def explain_memory(error: BaseException) -> str:
    """Say in one line where memory ran out and what to change.

    Args:
        error: An exception for which `is_out_of_memory` holds, with its traceback.

    Returns:
        One line.
    """
    names = [frame.name for frame in reversed(traceback.extract_tb(error.__traceback__))]
    where = next((name for name in names if name in _ADVICE), None)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    advice = _ADVICE.get(where or "", "see docs/real_models.md for what each setting costs")
    place = f" in {where}" if where else ""
    return f"out of memory{place}: {advice} ({first})"
