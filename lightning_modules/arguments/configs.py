"""Where a checkpoint's hyperparameters and the present config differ."""

from __future__ import annotations

from typing import Any


def differing_hyperparameters(saved: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """Compare a checkpoint's hyperparameters with the model's part of the config.

    Args:
        saved: What ``save_hyperparameters`` stored: the arguments, perhaps with ``_class_path``.
        model: ``class_path`` and ``init_args`` as configured now.

    Returns:
        One line for each argument that differs.
    """
    saved = {key: value for key, value in saved.items() if key != "_instantiator"}
    class_path = saved.pop("_class_path", model.get("class_path"))
    before = {"class_path": class_path, **_flat(saved)}
    now = {"class_path": model.get("class_path"), **_flat(model.get("init_args") or {})}
    return [
        f"model.{key}: the checkpoint was made with {before[key]!r}, this run uses {now[key]!r}"
        for key in before
        if key in now and before[key] != now[key]
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested dictionaries into dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
