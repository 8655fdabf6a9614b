"""Where callbacks stand in the trainer's list: what one publishes must not be missing or undone."""

from __future__ import annotations

import lightning as L

PROBE = "EntropyProbe"


def require_probe(trainer: L.Trainer, callback: L.Callback) -> None:
    """Check that a callback that uses the reading of a whole iteration will find one.

    Args:
        trainer: The trainer.
        callback: The callback that needs a reading.

    Raises:
        ValueError: If no `EntropyProbe` runs beside it.
    """
    names = _names(trainer)
    if PROBE not in names:
        name = type(callback).__name__
        raise ValueError(
            f"{name} needs the readings of callbacks.{PROBE}, but the trainer's callbacks are "
            f"{names}; add the probe or remove {name}"
        )


def require_probe_before(trainer: L.Trainer, callback: L.Callback) -> None:
    """Check that a callback that changes the reading comes after the one that publishes it.

    Args:
        trainer: The trainer.
        callback: The callback that needs a reading.

    Raises:
        ValueError: If no `EntropyProbe` stands before it.
    """
    before = _names(trainer)[: _callbacks(trainer).index(callback)]
    if PROBE not in before:
        raise ValueError(
            f"{type(callback).__name__} replaces the reading of callbacks.{PROBE}, but before "
            f"it in the trainer's callbacks there are only {before}; list it after the probe"
        )


def refuse_probe_after(trainer: L.Trainer, callback: L.Callback) -> None:
    """Check that no probe takes away again what a callback publishes.

    Args:
        trainer: The trainer.
        callback: The callback that publishes a curve of its own.

    Raises:
        ValueError: If an `EntropyProbe` stands after it.
    """
    if PROBE in _names(trainer)[_callbacks(trainer).index(callback) :]:
        name = type(callback).__name__
        raise ValueError(
            f"callbacks.{PROBE} would overwrite the curve of callbacks.{name}; list {name} after "
            "the probe in trainer.callbacks"
        )


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """All callbacks, in the order of their turns."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _names(trainer: L.Trainer) -> list[str]:
    return [type(callback).__name__ for callback in _callbacks(trainer)]
