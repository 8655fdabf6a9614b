"""Which failures are the user's to mend, and what to say of them."""

from __future__ import annotations

import logging
import traceback
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

import aegpo
from aegpo.utilities.halving import OneRowTooMany
from lightning_modules.arguments.messages import explain_exception
from lightning_modules.arguments.sources import OUR_PACKAGES

ADVICE = {
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

ONE_ROW = {
    "decode": "draw smaller images",
    "update": (
        "set gradient_checkpointing: true of the policy, or load its frozen weights with "
        "dtype: bfloat16"
    ),
    "rollout": (
        "load the policy's frozen weights with dtype: bfloat16, keep idle parts in CPU memory with "
        "offload: true, or draw smaller images"
    ),
}
"""The same where chunks were halved down to one row, and that was too much."""


def explain_building(error: BaseException) -> str:
    """Say in one line why the configured objects cannot be built here.

    Args:
        error: What building them raised.

    Returns:
        One line.
    """
    said = str(error)
    if "No supported gpu backend found" in said or "CUDAAccelerator` can not run" in said:
        return (
            "trainer.accelerator asks for a GPU, and torch finds none here (`aegpo doctor` says "
            "why); to try the recipe out on this machine, on a tiny random model, lay --config "
            "hardware/cpu over it"
        )
    return explain_exception(error)


def explain_memory(error: BaseException) -> str:
    """Say in one line where memory ran out and what to change.

    Args:
        error: An exception for which `aegpo.utilities.halving.is_out_of_memory` holds, with its
            traceback.

    Returns:
        One line.
    """
    names = [frame.name for frame in reversed(traceback.extract_tb(error.__traceback__))]
    alone = isinstance(error, OneRowTooMany)
    helps = ONE_ROW if alone else ADVICE
    where = next((name for name in names if name in helps), None)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    advice = helps.get(where or "", "see docs/real_models.md for what each setting costs")
    place = f" in {where}" if where else ""
    place += ", one row at a time" if alone else ""
    return f"out of memory{place}: {advice} ({first})"


def is_user_error(error: BaseException) -> bool:
    """Whether an exception from a running command is a message to the user or a fault.

    Args:
        error: What ended the run.

    Returns:
        True for what a ``raise`` in our own packages or Lightning's checks said, and for files and
        disks that failed, and for what a constructor refused, such as an optimizer's. Another error
        from inside torch is a fault and keeps its traceback.
    """
    if isinstance(error, OSError | MisconfigurationException):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    if refusing_class(error) is not None:
        return True
    roots = [Path(aegpo.__file__).parents[1] / name for name in OUR_PACKAGES]
    ours = any(root in Path(frames[-1].filename).parents for root in roots)
    # An operation of torch fails in the frame that called it, so the frame alone does not tell.
    return ours and (frames[-1].line or "").startswith("raise ")


def refusing_class(error: BaseException) -> type[Any] | None:
    """Say whose constructor refused its arguments, which stand in the config.

    Args:
        error: What ended the run.

    Returns:
        The class, such as an optimizer's; None if the error was raised elsewhere, or by a class of
        ours, which says what to do by itself.
    """
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None or not isinstance(error, ValueError):
        return None
    line = traceback.extract_tb(innermost)[0].line or ""
    if innermost.tb_frame.f_code.co_name != "__init__" or not line.startswith("raise "):
        return None
    refusing = type(innermost.tb_frame.f_locals.get("self"))
    return None if refusing.__module__.partition(".")[0] in OUR_PACKAGES else refusing


def quieten_lightning() -> None:
    """Leave out Lightning's advertisements, and warnings about what is meant here."""
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(_not_an_advertisement)
    # Dropout and the like are off on purpose: a ratio compares two passes of one network.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # A resumed run goes on in its folder; another's is refused before.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # What is logged here is of all ranks already.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")


def _not_an_advertisement(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    commands = "`Trainer(limit_train_batches=1)` was configured"  # by us, where nothing is trained
    return (
        not said.startswith(("💡 Tip", "TPU available: False", commands)) and "Tip: For" not in said
    )
