"""Prompt sets that come with the package: made by code, the same everywhere, named `set:split`.

A set is a module with `SPLITS`, the names of its splits, and `records(split)`, which returns one
dict a prompt with the keys `prompt`, `category` and `split` and whatever the rewards read.
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
