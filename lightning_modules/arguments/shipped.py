"""The configs that come with the package, by their names, from any folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import aegpo

FOLDER = Path(aegpo.__file__).parent / "configs"
"""Where they are: in a checkout a link to its `configs/`, in a wheel the files themselves."""
_OPTIONS = ("--config", "-c")
_ENDING = ".yaml"


def shipped_config(name: str) -> str:
    """Find a config by its name, unless there is a file of that name.

    Args:
        name: What was given for a config: `shapes`, `overlays/grpo.yaml`,
            `configs/models/sd15.yaml`, any other file, or settings as text.

    Returns:
        The file of the package; the name itself where there is none, or where the user's folder has
        it too.
    """
    if "\n" in name or ":" in name or os.path.exists(name):
        return name
    inside = Path(name.removeprefix("configs/"))
    if inside.is_absolute() or not inside.name or ".." in inside.parts:
        return name
    file = FOLDER / inside.with_name(inside.name.removesuffix(_ENDING) + _ENDING)
    return str(file) if file.is_file() else name


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Put the files of the package in the place of their names on a command line.

    Args:
        arguments: Arguments of the process.

    Returns:
        The same, with the values of `--config` and `-c` as `shipped_config` finds them.
    """
    found = []
    for before, word in zip(("", *arguments), arguments, strict=False):
        name, equals, value = word.partition("=")
        if equals and name in _OPTIONS:
            found.append(f"{name}={shipped_config(value)}")
        else:
            found.append(shipped_config(word) if before in _OPTIONS else word)
    return found


def shipped_names() -> list[str]:
    """Names of all configs of the package, such as `overlays/grpo`."""
    return sorted(
        file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob(f"*{_ENDING}")
    )
