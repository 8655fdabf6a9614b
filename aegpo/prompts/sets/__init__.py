"""Prompt sets that come with the package: made by code, the same everywhere, named `set:split`.

A set is a module with `SPLITS`, the names of its splits, and `records(split)`, which returns one
dict a prompt with the keys `prompt`, `category` and `split` and whatever the rewards read. It may
have `SHARES`, the share of the draws of each category of its split "train".
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

PROMPT_SETS: dict[str, str] = {
    "animals": "aegpo.prompts.sets.animals",
    "geneval": "aegpo.prompts.sets.geneval",
    "ocr": "aegpo.prompts.sets.ocr",
    "shapes": "aegpo.shapes.splits",
    "shapes_mixed": "aegpo.shapes.mixed",
}
"""Module of each set; imported when one of its splits is read."""


def is_bundled(source: str) -> bool:
    """Whether a source of prompts is `set:split` of a bundled set, known split or not."""
    name, colon, _ = source.partition(":")
    return bool(colon) and name in PROMPT_SETS


def bundled_sources() -> list[str]:
    """Every `set:split` there is."""
    return [
        f"{name}:{split}"
        for name, module in PROMPT_SETS.items()
        for split in importlib.import_module(module).SPLITS
    ]


def bundled_records(source: str) -> list[dict[str, Any]]:
    """Read a bundled split.

    Args:
        source: `set:split`, such as "geneval:train".

    Returns:
        One dict a prompt, always the same ones in the same order.

    Raises:
        ValueError: If there is no such set or split.
    """
    known = bundled_sources()
    if source not in known:
        close = difflib.get_close_matches(source, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"there are no bundled prompts {source!r}; choose from {', '.join(known)}{hint}"
        )
    name, _, split = source.partition(":")
    records: list[dict[str, Any]] = importlib.import_module(PROMPT_SETS[name]).records(split)
    return records


def companion_split(source: str, split: str) -> str | None:
    """Name another split of the set that a source is of.

    Args:
        source: A file or `set:split`.
        split: The name of another split, such as "heldout".

    Returns:
        `set:split`; None for a file, for a set without it and for the source itself.
    """
    name, _, own = source.partition(":")
    if not is_bundled(source) or own == split:
        return None
    known = split in importlib.import_module(PROMPT_SETS[name]).SPLITS
    return f"{name}:{split}" if known else None


def own_shares(source: str) -> dict[str, float] | None:
    """The shares of the draws that a set's training prompts come with.

    Args:
        source: A file or `set:split`.

    Returns:
        By category; None where all prompts are drawn alike.
    """
    name, _, split = source.partition(":")
    if not is_bundled(source) or split != "train":
        return None
    shares: dict[str, float] | None = getattr(
        importlib.import_module(PROMPT_SETS[name]), "SHARES", None
    )
    return shares
