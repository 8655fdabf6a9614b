"""Choosing by the hash of what is chosen from: the same on every machine, with no random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
SPLITS = ("train", "heldout")
"""Names of the splits that `divide` makes."""


def hash_number(item: object, key: str) -> int:
    """A number below 2^64 that depends on an item's `repr` and a key alone."""
    digest = hashlib.blake2b(f"{key}/{item!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def shuffled(items: Iterable[T], key: str) -> list[T]:
    """Items in the order of their hashes.

    Args:
        items: What has a `repr` that says all of it: texts, numbers and tuples of them.
        key: Another key gives another order.

    Returns:
        The items.
    """
    return sorted(items, key=lambda item: hash_number(item, key))


def pick(choices: Sequence[T], item: object, key: str) -> T:
    """One of some choices for an item.

    Args:
        choices: At least one.
        item: What it is chosen for.
        key: Another key gives another choice.

    Returns:
        The choice.
    """
    return choices[hash_number(item, key) % len(choices)]


def divide(
    items: Iterable[T], split: str, heldout: int, key: str, train: int | None = None
) -> list[T]:
    """A split of some items: the first of their hash order are held out.

    Args:
        items: All of them.
        split: "train" or "heldout".
        heldout: Items that are held out.
        key: Of the order.
        train: Items that training gets at most; None for all others.

    Returns:
        The split's items; those of the two splits are disjoint.

    Raises:
        ValueError: For another name of a split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    order = shuffled(items, key)
    return order[:heldout] if split == "heldout" else order[heldout:][:train]
