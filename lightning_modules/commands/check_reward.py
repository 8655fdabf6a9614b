"""``aegpo check-reward``: a reward tried out before a run depends on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aegpo.rewards.base import Reward
from aegpo.rewards.checks.check import check_reward
from aegpo.rewards.checks.samples import (
    RewardSamples,
    drawings,
    folder_samples,
    shapes_samples,
)
from aegpo.rewards.checks.shortcuts import check_shortcuts
from aegpo.utilities.findings import Finding, report_and_count
from lightning_modules.arguments.messages import debugging, explain_exception
from lightning_modules.arguments.parser import OneLineParser

DRAWINGS = 8
"""Drawings of a prompt in which shortcuts are looked for."""


def main(args: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line and status 2, a failed check status 1.

    Args:
        args: Arguments after `check-reward` instead of those of the process.
    """
    parser = OneLineParser(
        prog="aegpo check-reward",
        usage="aegpo check-reward CLASS [--init_args.KEY VALUE ...] [options]",
        description="Try a reward out: form, determinism, batches, broken input, time, shortcuts.",
    )
    parser.add_argument("--config", action="config", help="file with these keys, as of `fit`")
    parser.add_subclass_arguments(Reward, "reward", help="the reward; CLASS is short for it")
    parser.add_argument("--images", type=str | None, help="folder of images with a metadata.jsonl")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of the Shapes world else")
    parser.add_argument(
        "--size", type=int | None, help="side in pixels to which images are resized"
    )
    parser.add_argument(
        "--device", type=str | None, help="cpu, cuda, ...; what there is if left out"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="accepted shift in standard deviations"
    )
    parser.add_argument(
        "--shortcuts",
        type=int,
        default=24 * DRAWINGS,
        help="drawings in which to look for what raises the reward whatever it shows; 0 for none",
    )
    parsed = parser.parse_args(spelled_out(sys.argv[2:] if args is None else args))
    if parsed.prompts < 1 or (parsed.size is not None and parsed.size < 1):
        parser.error("--prompts and --size must be at least 1")
    if parsed.shortcuts < 0:
        parser.error("--shortcuts must be at least 0")
    if parsed.reward is None:
        parser.error("name a reward, for instance aegpo check-reward aegpo.rewards.ShapesMatch")
    try:
        reward = parser.instantiate(parsed).reward
        samples = read_samples(parsed.images, parsed.prompts, parsed.size)
        more = _samples_for_shortcuts(parsed, samples)
        device = find_device(parsed.device)
    except Exception as error:  # a user's reward may raise anything
        if debugging():
            raise
        parser.error(explain_exception(error))
    findings = _checks(reward, samples, more, device, parsed.tolerance)
    if not report_and_count(findings, 26):
        raise SystemExit(1)


def _samples_for_shortcuts(parsed: Any, samples: RewardSamples) -> RewardSamples | None:
    """The images of the folder, or drawings; None if nobody wants them."""
    if parsed.shortcuts == 0:
        return None
    if parsed.images is not None:
        return samples
    return drawings(-(-parsed.shortcuts // DRAWINGS), DRAWINGS, parsed.size)


def _checks(
    reward: Reward,
    samples: RewardSamples,
    more: RewardSamples | None,
    device: torch.device,
    tolerance: float,
) -> Iterator[Finding]:
    """All checks; a reward that fails is not looked at for shortcuts."""
    failed = False
    for finding in check_reward(reward, samples, device, tolerance):
        failed = failed or finding.status == "failed"
        yield finding
    if more is not None and not failed:
        yield from check_shortcuts(reward, more, device)


def find_device(name: str | None) -> torch.device:
    """Turn a device's name into the device.

    Args:
        name: As torch has it; None for the first accelerator, or the CPU.

    Returns:
        The device.

    Raises:
        ValueError: If torch knows no such device.
    """
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is no device; give cpu, cuda, cuda:1 or mps") from error


def read_samples(folder: str | None, prompts: int, size: int | None) -> RewardSamples:
    """Read the samples from a folder, or draw them.

    Args:
        folder: Folder with a `metadata.jsonl`; None for the Shapes world.
        prompts: Number of prompts of the Shapes world.
        size: Side in pixels to which images are resized, or None.

    Returns:
        The samples.
    """
    return shapes_samples(prompts, size) if folder is None else folder_samples(folder, size)


def spelled_out(args: Sequence[str]) -> list[str]:
    """Spell ``CLASS --init_args.KEY VALUE`` and ``CLASS KEY=VALUE`` out for jsonargparse.

    Args:
        args: What was typed after the command.

    Returns:
        The arguments that mean it.
    """
    if not args or args[0].startswith("-"):
        return list(args)
    expanded = ["--reward", args[0]]
    for arg in args[1:]:
        if arg.startswith("--init_args."):
            expanded.append(f"--reward{arg[1:].replace('-init_args', '.init_args', 1)}")
        elif "=" in arg and arg.partition("=")[0].replace(".", "_").isidentifier():
            expanded.append(f"--reward.init_args.{arg}")
        else:
            expanded.append(arg)
    return expanded
