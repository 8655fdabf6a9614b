"""Where a checkpoint's hyperparameters and the present config differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_modules.arguments.messages import did_you_mean

LARGEST_SEED = 2**32 - 1
"""What numpy's generator takes."""


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


def mistake_in_seed(seed: Any) -> str | None:
    """Say of a seed that numpy's generator does not take it, in one line; None if it does."""
    if not isinstance(seed, int) or 0 <= int(seed) <= LARGEST_SEED:
        return None
    return f"seed_everything={seed} must be between 0 and {LARGEST_SEED}"


def unknown_empty_keys(raw: Any, parsed: Any, prefix: str = "") -> list[str]:
    """Find keys with an empty value that the parser took in silence and forgot.

    jsonargparse refuses an unknown key only if something is below it, so that `modell: {}` passes.

    Args:
        raw: A config file's content as YAML read it.
        parsed: What the parser made of all files and arguments, as nested dictionaries.
        prefix: Dotted key of `raw` itself.

    Returns:
        The forgotten keys in dotted form. Arguments of a class that a later file replaced are not
        looked at, nor are lists.
    """
    if not isinstance(raw, dict) or not isinstance(parsed, dict):
        return []
    if "class_path" in raw and not _same_class(raw["class_path"], parsed.get("class_path")):
        return []
    forgotten = []
    for key, value in raw.items():
        name = str(key).removesuffix("+")
        if name not in parsed:
            if value in ({}, []):
                forgotten.append(prefix + name)
        else:
            forgotten += unknown_empty_keys(value, parsed[name], f"{prefix}{name}.")
    return forgotten


def forgotten_key(file: str, parsed: dict[str, Any]) -> str | None:
    """Say which key of a config the parser took in silence and forgot.

    Args:
        file: A config.
        parsed: What the parser made of all files and arguments, as nested dictionaries.

    Returns:
        One line, or None.
    """
    raw = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    for key in unknown_empty_keys(raw, parsed):
        known: Any = parsed
        *parents, name = key.split(".")
        for parent in parents:
            known = known[parent]
        return f"there is no option {key!r} (in {file}){did_you_mean(name, known)}"
    return None


def _same_class(first: object, second: object) -> bool:
    """Whether two class paths may be the same class: one of them may be the short name."""
    if not isinstance(first, str) or not isinstance(second, str):
        return False
    return first.rpartition(".")[2] == second.rpartition(".")[2]
