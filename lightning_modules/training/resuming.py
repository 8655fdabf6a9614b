"""What a checkpoint was made with, against what this run is made with: nothing is half applied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from aegpo.policies.base import Policy
from aegpo.policies.trainable import require_fit

PREFIX = "policy."
"""What Lightning puts before the names of the policy's tensors."""

MAY_DIFFER = {
    "pretrained": "it is taken to be the same model",  # a folder may have moved
    "lora_from": "both files are the same",
    "sampler": "rollouts are drawn by it from here on",
    "evaluation_sampler": "held-out scores before and after are of different images",
}
"""What is only said when it differs, and what follows from that."""


def require_own_checkpoint(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a file that another program wrote.

    Args:
        checkpoint: The file's content.

    Raises:
        ValueError: If it has none of what `PolicyModule` puts there.
    """
    if "aegpo" not in checkpoint:
        found = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(
            f"the checkpoint was not written by this program: it holds {found}; give a file of a "
            "run of `aegpo fit`, such as its last.ckpt"
        )


def require_same_make(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a policy or an optimizer that saved tensors do not belong to.

    Args:
        saved: `Policy.made_with` of the run that wrote the checkpoint, by argument.
        now: That of this run.

    Raises:
        ValueError: If an argument differs with which the tensors mean something else.
    """
    for name, value in saved.items():
        if name not in now or now[name] == value:
            continue
        if name == "lora_beneath":
            raise ValueError(_other_base(saved.get("lora_from")))
        told = f"the checkpoint was made with {name}={value!r}, this run with {now[name]!r}"
        if name in MAY_DIFFER:
            rank_zero_info(f"{told}; {MAY_DIFFER[name]}")
            continue
        raise ValueError(
            f"{told}; pass --model.policy.{name} {as_argument(value)}"
            if name != "optimizer"
            else f"{told}; its state is of no use here: keep the optimizer, or begin a new run"
        )


def _other_base(lora_from: object) -> str:
    """What is said where a checkpoint was trained with another LoRA in its reference, or none."""
    if lora_from is None:
        return (
            "the checkpoint was made with no LoRA in its reference, this run with one; leave "
            "model.policy.lora_from out, or begin a new run"
        )
    return (
        f"the checkpoint was made with lora_from={lora_from!r} in its reference, this run with "
        f"none or another; pass --model.policy.lora_from {as_argument(lora_from)} "
        "--model.policy.lora_into reference"
    )


def as_argument(value: Any) -> str:
    """Write a value as it is typed in a shell.

    Args:
        value: A plain value, or a list of such.

    Returns:
        One word of a shell.
    """
    plain = {None: "null", True: "true", False: "false"}
    if isinstance(value, list):
        return shlex.quote(f"[{','.join(map(str, value))}]")
    return plain[value] if value is None or isinstance(value, bool) else shlex.quote(str(value))


def require_all_weights(policy: Policy, state: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that lacks a trained tensor, or holds one that the policy has not.

    Args:
        policy: The policy that is about to take them.
        state: The checkpoint's tensors, named as Lightning does.

    Raises:
        ValueError: If names or shapes differ.
    """
    require_fit(policy.trainable_state_dict(), policy_tensors(state))


def checkpoint_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A policy's tensors under the names that they have in a checkpoint's ``state_dict``."""
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}


def policy_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the policy's own names; the way back from the above."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group: rate, betas, weight decay and the like."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def keep_hyperparameters(
    optimizer: Optimizer, wanted: Sequence[Mapping[str, Any]], schedulers: Sequence[Any]
) -> None:
    """Give a restored optimizer the settings of this run, which its checkpoint has overwritten.

    With a schedule the rate follows it: a new rate scales what is left of the schedule.

    Args:
        optimizer: The optimizer with the checkpoint's state and settings.
        wanted: `hyperparameters` from before.
        schedulers: Learning-rate schedulers on it, with the checkpoint's state.
    """
    for number, (group, settings) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        for name, value in settings.items():
            before = group["initial_lr"] if name == "lr" and schedulers else group.get(name)
            if name == "initial_lr" or before == value:
                continue
            rank_zero_info(f"the optimizer goes on with {name}={value!r}, before it had {before!r}")
            if name == "lr" and schedulers:
                group["lr"] *= value / before
                group["initial_lr"] = value
                for scheduler in schedulers:
                    scheduler.base_lrs[number] = value
            else:
                group[name] = value


def hide_later_points(loggers: Sequence[Logger], iteration: int) -> None:
    """Have TensorBoard forget what a killed run logged after the checkpoint it goes on from.

    Those iterations are run again, and would be drawn twice. What is in the files stays there.

    Args:
        loggers: The trainer's.
        iteration: Iterations done.
    """
    boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    if not boards:
        return
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # as slow as it is rare
    from torch.utils.tensorboard import SummaryWriter

    for logger in boards:
        writer: Any = logger.experiment
        # On the other ranks it is one that has every attribute and does nothing.
        file: Any = writer.file_writer if isinstance(writer, SummaryWriter) else None
        if file is not None:
            start = SessionLog(status=SessionLog.START)
            file.add_event(Event(step=iteration + 1, session_log=start))
