"""Argument parsers that say what is wrong in one line, and texts as arguments."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Container, Sequence
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import yaml
from jsonargparse import ArgumentParser

from lightning_modules.arguments.config_files import (
    config_files,
    mistake_in_file,
    mistake_in_value,
)
from lightning_modules.arguments.messages import debugging, explain_parsing, fail

if TYPE_CHECKING:
    _Parser = ArgumentParser
else:
    _Parser = object


# An enumeration's member is a default in some classes, such as Lightning's Timer; YAML's has none.
yaml.representer.SafeRepresenter.add_multi_representer(
    Enum, lambda dumper, member: dumper.represent_data(member.value)
)


class OneLineErrors(_Parser):
    """Mixed into a parser of jsonargparse: one line for a mistake, and no usage dump.

    Options are written out: the beginning of one, which argparse takes for it, starts a training
    with what nobody typed (``--seed 3``). Parsers of commands and of nested classes take it over.
    """

    def __init__(self, *positional: Any, allow_abbrev: bool = False, **settings: Any) -> None:
        super().__init__(*positional, allow_abbrev=allow_abbrev, **settings)

    def parse_args(  # type: ignore[override]  # jsonargparse's has more arguments than argparse's
        self, args: Sequence[str] | None = None, *positional: Any, **settings: Any
    ) -> Any:
        """Parse, and take null for an argument of a class that is nested in another.

        jsonargparse hands such an argument down as text, in which null has become ``None``.

        Args:
            args: Arguments; those of the process by default.
            *positional: As for jsonargparse.
            **settings: As for jsonargparse.

        Returns:
            The namespace.
        """
        if getattr(self, "_inner_parser", False) and args is not None:
            args = [self._with_null(argument) for argument in args]
        elif self.exit_on_error:
            mistake = mistake_in_arguments(sys.argv[1:] if args is None else list(args))
            if mistake is not None:
                fail(mistake)
        return super().parse_args(args, *positional, **settings)

    def validate(self, namespace: Any, *positional: Any, **settings: Any) -> None:
        """Check values as jsonargparse does, and null as well, which it lets pass for any type.

        Args:
            namespace: What was parsed.
            *positional: As for jsonargparse.
            **settings: As for jsonargparse.

        Raises:
            TypeError: If a value does not fit its argument.
        """
        super().validate(namespace, *positional, **settings)
        for action in self._actions:
            typehint = getattr(action, "_typehint", None)
            has_default = action.default is not None and action.default is not argparse.SUPPRESS
            if typehint is None or not has_default or _takes_null(typehint):
                continue
            if action.dest in namespace and namespace[action.dest] is None:
                raise TypeError(
                    f'Parser key "{action.dest}":\n  Expected a {typehint}. Got value: None'
                )

    def _with_null(self, argument: str) -> str:
        given = re.fullmatch(r"--([\w.]+)=None", argument)
        if given is None:
            return argument
        actions = [action for action in self._actions if action.dest == given[1]]
        types = [getattr(action, "_typehint", None) for action in actions]
        further_down = "." in given[1]  # where the type is looked at
        takes_null = further_down or any(map(_takes_null, types))
        return f"--{given[1]}=null" if takes_null else argument

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with status 2.

        Args:
            message: jsonargparse's own text.
            ex: The exception behind it.
        """
        # Parsers of nested classes are tried out and may fail without that being an error.
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        parser: argparse.ArgumentParser = getattr(ex, "subcommand_parser", None) or self
        if lacking := re.match(r"argument (?:-\w/)?--([\w.]+): expected one argument", message):
            fail(f"{_without_value(lacking[1])} needs a value")
        line = explain_parsing(message, [action.dest for action in parser._actions])
        fail(line.replace("<unicode string>", _unreadable_config() or "<unicode string>"))


def mistake_in_arguments(args: Sequence[str]) -> str | None:
    """Say what YAML or jsonargparse would take in silence, or refuse without naming the file.

    Args:
        args: Arguments of the process.

    Returns:
        One line, or None.
    """
    mistakes = [mistake_in_file(file) for file in config_files(args)]
    for before, word in zip(("", *args), args, strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--") and equals:
            mistakes.append(mistake_in_value(name, value))
        elif before.startswith("--"):
            mistakes.append(mistake_in_value(before, word))
    return next(filter(None, mistakes), None)


def _takes_null(typehint: Any) -> bool:
    return typehint is Any or NoneType in get_args(typehint)


class OneLineParser(OneLineErrors, ArgumentParser):
    """The parser of commands that have arguments of their own."""


def join_texts(args: list[str], options: Sequence[str]) -> list[str]:
    """Let options take texts as they are.

    jsonargparse reads a list as one argument in YAML or JSON, which nobody wants to type in a
    shell.

    Args:
        args: Arguments of the process.
        options: Names of the options, as of `Command.texts`.

    Returns:
        The same, with the texts after each of the options as one JSON list, wherever they stand.
        A word that starts with ``--`` is a text if there is a space in it, or after
        ``--option=``. One text that is a JSON list of texts is that list.
    """
    for option in options:
        rest: list[str] = []
        texts: list[str] = []
        taking, found = False, False
        for word in args:
            name, equals, value = word.partition("=")
            if name == f"--{option}":
                taking = found = True
                texts += [value] if equals else []
            elif taking and not _is_option(word):
                texts.append(word)
            else:
                taking = False
                rest.append(word)
        if found:
            listed = texts[0] if len(texts) == 1 and _is_list(texts[0]) else _json(texts)
            args = [*rest, f"--{option}", listed]
    return args


def second_command(args: Sequence[str], commands: Container[str]) -> str | None:
    """Find a command that stands behind another, where jsonargparse looks for an option.

    Args:
        args: The arguments, a command first.
        commands: Names of all commands.

    Returns:
        One line, or None.
    """
    for before, word in pairwise(args):
        if word in commands and not before.startswith("-"):
            return f"give one command: {args[0]} or {word}; each is a line of its own"
    return None


def _is_option(word: str) -> bool:
    return word in ("-c", "-h") or (
        word.startswith("--") and not re.search(r"\s", word.partition("=")[0])
    )


def _is_list(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _json(texts: list[str]) -> str:
    """A list that YAML reads, too: it knows no surrogate pairs, which JSON escapes by."""
    plain = json.dumps(texts, ensure_ascii=False)
    unseen = {ord(c) for c in plain if not c.isprintable() and ord(c) < 0x10000}
    return plain.translate({number: f"\\u{number:04x}" for number in unseen})


def _without_value(option: str) -> str:
    """Find the option as it was typed: argparse names the root of a dotted one alone."""
    for word, after in pairwise([*sys.argv[1:], "--"]):
        if f"{word}.".startswith(f"--{option}.") and after.startswith("--"):
            return word
    return f"--{option}"


def _unreadable_config() -> str | None:
    """Name the config file that YAML cannot read; jsonargparse reports its line without it."""
    for argument in sys.argv[1:]:
        path = Path(argument.removeprefix("--config="))
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            try:
                yaml.safe_load(path.read_text())
            except yaml.YAMLError:
                return str(path)
    return None
