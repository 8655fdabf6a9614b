"""Which settings of a run differ from the defaults of the classes that they are arguments of."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lightning_modules.arguments.sources import OUR_PACKAGES

_KNOWN = (*OUR_PACKAGES, "torch", "lightning")
"""Packages whose classes are imported for their defaults; a stranger's config may name any."""
_NOTHING = object()


def changed_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Find what a resolved config sets otherwise than the classes do by themselves.

    Args:
        config: Seed, trainer, model and data.

    Returns:
        Values on one line by dotted key, `init_args` left out of it. What stands in a class that is
        not ours is there whole.
    """
    trainer = dict(config.get("trainer") or {})
    found: dict[str, str] = {}
    if "seed_everything" in config:
        found["seed_everything"] = _line(config["seed_everything"])
    _arguments("trainer", trainer, _defaults("lightning.pytorch.Trainer"), found)
    for section in ("model", "data"):
        if section in config:
            _walk(section, config[section], _NOTHING, found)
    return found


def side_by_side(runs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Lay the settings of several runs beside each other.

    Args:
        runs: Of each what `changed_settings` found.

    Returns:
        For each key a value a run; "" where it is the default.
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    return {key: [run.get(key, "") for run in runs] for key in keys}


def _walk(key: str, value: Any, default: Any, found: dict[str, str]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        path = str(value["class_path"])
        found[key] = path
        _arguments(key, value.get("init_args") or {}, _defaults(path), found)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            # By its class: a list may be longer in another run.
            path = str(one.get("class_path", number)) if isinstance(one, Mapping) else str(number)
            name = f"{key}[{path.rpartition('.')[2]}]"
            _walk(f"{name}#{number}" if name in found else name, one, _NOTHING, found)
    elif default is _NOTHING or _line(value) != _line(default):
        found[key] = _line(value)


def _arguments(
    key: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any], found: dict[str, str]
) -> None:
    for name, value in arguments.items():
        _walk(f"{key}.{name}", value, defaults.get(name, _NOTHING), found)


def _defaults(class_path: str) -> dict[str, Any]:
    """Defaults of a class's arguments, also of those that it hands on to its bases."""
    module, _, name = class_path.rpartition(".")
    if module.partition(".")[0] not in _KNOWN:
        return {}
    found: dict[str, Any] = {}
    try:
        made = getattr(import_module(module), name)
        for kind in inspect.getmro(made):
            if "__init__" not in vars(kind):
                continue
            parameters = list(inspect.signature(kind).parameters.values())
            defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
            found = defaults | found
            if all(one.kind is not one.VAR_KEYWORD for one in parameters):
                break
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    return found


def _line(value: Any) -> str:
    if isinstance(value, str):
        return value
    # A tuple is a list in YAML, and 1e-3 is .001.
    return json.dumps(value, ensure_ascii=False, default=str)
