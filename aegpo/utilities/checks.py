"""Checks of arguments that many constructors share."""

from __future__ import annotations


def require_positive(name: str, count: int) -> None:
    """Raise unless the argument `name` is at least 1."""
    if count < 1:
        raise ValueError(f"{name}={count} must be at least 1")
