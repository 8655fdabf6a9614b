"""Whether a run that was killed is the one that was not: numbers, checkpoint, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.commands.doctor.witness import file_digest

CLOCKED = ("seconds/", "memory/")
"""Tags of what no two runs share: the clock and the computer's memory."""
_OTHERWISE = (".ckpt", "config.yaml", "metrics.csv")

Logged = list[tuple[tuple[int, str], str]]
"""Iteration and tag with the number's bits, in the order of logging."""


def logged_rows(notes: Sequence[Mapping[str, Any]]) -> Logged:
    """All numbers that a life logged, clocks left out, by iteration and tag."""
    return [
        ((int(note["step"]), tag), value)
        for note in notes
        if "row" in note
        for tag, value in note["row"].items()
        if not tag.startswith(CLOCKED)
    ]


def first_difference(whole: Logged, life: Logged) -> str | None:
    """The first number that a life of a killed run logged otherwise, in words.

    Args:
        whole: What the run logged that was never killed.
        life: What one life of the other logged, in its order.

    Returns:
        None if there is none.
    """
    left: dict[tuple[int, str], list[str]] = {}
    for key, value in whole:
        left.setdefault(key, []).append(value)
    for (step, tag), value in life:
        if not left.get((step, tag)):
            return (
                f"{tag} of iteration {step} was logged, which the whole run has not or less often"
            )
        expected = left[step, tag].pop(0)
        if expected != value:
            is_now, was = float.fromhex(value), float.fromhex(expected)
            return f"{tag} of iteration {step} is {is_now!r}, not {was!r}"
    return None


def never_logged(whole: Logged, lives: Sequence[Logged]) -> str | None:
    """The first number that no life of a killed run logged, in words; None if there is none."""
    found = {key for life in lives for key, _ in life}
    missing = sorted({key for key, _ in whole} - found)
    return f"{missing[0][1]} of iteration {missing[0][0]} was never logged" if missing else None


def checkpoints_differ(whole: Path, other: Path) -> str | None:
    """The first entry in which the last checkpoints of two runs differ, in words.

    All is compared: trained tensors, optimizer, schedule, sampler, callbacks, costs, progress.

    Args:
        whole: Folder of the run that was never killed.
        other: Folder of the other.

    Returns:
        None if there is none.
    """
    import torch

    saved = [
        dict(_leaves(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True), folder))
        for folder in (whole, other)
    ]
    for name in sorted(set(saved[0]) | set(saved[1])):
        if name not in saved[0] or name not in saved[1]:
            return f"the checkpoint's {name} is in one of the two only"
        ours, theirs = saved[0][name], saved[1][name]
        if isinstance(ours, torch.Tensor):
            same = isinstance(theirs, torch.Tensor) and _same_bits(ours, theirs)
        else:
            same = repr(ours) == repr(theirs)  # NaN is itself here
        if not same:
            return f"the checkpoint's {name} differs"
    return None


def files_differ(whole: Path, other: Path) -> str | None:
    """The first file of the log folders that differs or is missing, in words.

    Args:
        whole: Folder of the run that was never killed.
        other: Folder of the other.

    Returns:
        None if there is none.
    """
    first, second = dict(_files(whole / "log")), dict(_files(other / "log"))
    for name in sorted(set(first) | set(second)):
        if first.get(name) != second.get(name):
            return f"the file {name} differs"
    return None


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "tfevents" not in name and not name.endswith(_OTHERWISE):
            yield name, file_digest(path)


def _leaves(tree: Any, folder: Path, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, folder, f"{name}/{key}".replace(str(folder), ""))
    elif isinstance(tree, list | tuple) and tree:
        for number, value in enumerate(tree):
            yield from _leaves(value, folder, f"{name}/{number}")
    else:
        yield name, tree.replace(str(folder), "") if isinstance(tree, str) else tree


def _same_bits(one: Any, other: Any) -> bool:
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return bool(torch.equal(*raw)) if one.numel() else True
