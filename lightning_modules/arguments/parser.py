"""Argument parsers that say what is wrong in one line, and texts as arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml
from jsonargparse import ArgumentParser

from lightning_modules.arguments.messages import debugging, explain_parsing, fail

if TYPE_CHECKING:
    _Parser = ArgumentParser
else:
    _Parser = object


class OneLineErrors(_Parser):
    """Mixed into a parser of jsonargparse: one line for a mistake, and no usage dump."""

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
        line = explain_parsing(message, [action.dest for action in parser._actions])
        fail(line.replace("<unicode string>", _unreadable_config() or "<unicode string>"))


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
        The same, with the texts after each of the options as one JSON list; one that is a list
        already stays.
    """
    for option in options:
        if f"--{option}" not in args:
            continue
        first = args.index(f"--{option}") + 1
        after = next((i for i in range(first, len(args)) if args[i].startswith("--")), len(args))
        texts = args[first:after]
        if len(texts) != 1 or not texts[0].startswith("["):
            args = [*args[:first], json.dumps(texts), *args[after:]]
    return args


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
