"""Config files as they are written: what YAML would take in silence as less than is meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from aegpo.utilities.files import read_utf8
from lightning_modules.arguments.shipped import shipped_names

_MERGE = "<<"
"""YAML's key that merges other mappings, which is no name."""


def config_files(arguments: Sequence[str]) -> list[str]:
    """Find the config files among the arguments of a command.

    Args:
        arguments: Arguments of the process.

    Returns:
        The values of ``--config`` and ``-c``, in their order.
    """
    files = []
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            files += [value] if equals else list(arguments[number + 1 : number + 2])
    return files


def mistake_in_file(file: str) -> str | None:
    """Say why a config file would not be read as it was meant.

    Args:
        file: The file as it was given, or settings typed as text. One that is no YAML is left to
            the parser.

    Returns:
        One line with the file and the place in it, or None.
    """
    if not os.path.isfile(file):  # False, too, for settings typed as text, too long for a name
        return _mistake_in_name(file)
    path = Path(file)
    try:
        node = yaml.compose(read_utf8(path, file), yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    except ValueError as error:
        return str(error)
    advice = "; a config maps names to values, such as model: {init_args: {num_steps: 10}}"
    if node is None:
        return f"{file} is empty; leave it out, or write settings into it"
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "text"
        return f"{file} holds a {kind}{advice}"
    return next((f"{file}:{twice}" for twice in _given_twice(node)), None)


def _mistake_in_name(file: str) -> str | None:
    """Say that there is no such file; None for what is no name of one."""
    path = Path(file).expanduser()
    try:
        if "://" in file or not isinstance(yaml.safe_load(file), str) or path.exists():
            return None
    except (yaml.YAMLError, OSError):  # settings as text, or too long for a name
        return None
    beside: list[str] = []
    where = f"there is no config {file}"
    try:
        beside = [one.stem for one in path.parent.iterdir() if one.suffix == path.suffix]
    except OSError:
        where += f", nor a folder {path.parent}"
    close = difflib.get_close_matches(path.stem, beside, n=1)
    if close:
        return f"{where}; did you mean {str(path.with_stem(close[0]))!r}?"
    inside = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    close = difflib.get_close_matches(inside, shipped_names(), n=1, cutoff=0.8)
    return f"there is no config {file}; did you mean {close[0]!r}?" if close else where


def mistake_in_value(argument: str, text: str) -> str | None:
    """Say why a mapping that was typed would not be read as it was meant.

    Args:
        argument: The option that it is the value of.
        text: The value.

    Returns:
        One line, or None.
    """
    if not text.startswith("{"):
        return None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    names = [name for name, _, _ in _repeated(node)]
    return f"{argument}: {names[0]!r} is given twice; keep one of them" if names else None


def _given_twice(node: yaml.Node) -> Iterator[str]:
    for name, first, second in _repeated(node):
        before = f"line {first + 1}" if first != second else "the same line"
        yield (
            f"{second + 1}: {name!r} is given a second time, after {before}, and YAML would forget "
            "the first; keep one of them, or put what is below both under one"
        )


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Each key that a mapping has twice, with the lines of both, counted from 0."""
    seen: set[int] = set()  # an alias is the node that it names
    open_nodes: list[yaml.Node | None] = [node]
    while open_nodes:
        one = open_nodes.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, yaml.SequenceNode):
            open_nodes += one.value
        if not isinstance(one, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in one.value:
            open_nodes.append(value)
            if not isinstance(key, yaml.ScalarNode) or key.value == _MERGE:
                continue
            line = key.start_mark.line
            if key.value in lines:
                yield key.value, lines[key.value], line
            lines[key.value] = line
