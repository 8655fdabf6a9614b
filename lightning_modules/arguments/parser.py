"""The argument parser of commands that have arguments of their own: a mistake is one line."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

from jsonargparse import ArgumentParser

from lightning_modules.arguments.messages import explain_parsing

TAKE_TEXTS = ("export", "sample")
"""Commands whose ``--prompts`` are texts; those of ``signals`` are a number."""


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, which says what is wrong in one line and leaves out the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with status 2.

        Args:
            message: jsonargparse's own text.
            ex: The exception behind it.
        """
        # Parsers of nested classes are tried out and may fail without that being an error.
        if not self.exit_on_error:
            super().error(message, ex)
        line = explain_parsing(message, ex, [action.dest for action in self._actions])
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2)


def join_texts(args: list[str]) -> list[str]:
    """Let ``--prompts`` of ``export`` and ``sample`` take texts as they are.

    jsonargparse reads a list as one argument in YAML or JSON, which nobody wants to type in a
    shell.

    Args:
        args: Arguments of the process.

    Returns:
        The same, with the texts after ``--prompts`` as one JSON list; one that is a list already
        stays.
    """
    if not args or args[0] not in TAKE_TEXTS or "--prompts" not in args:
        return args
    first = args.index("--prompts") + 1
    after = next((i for i in range(first, len(args)) if args[i].startswith("--")), len(args))
    texts = args[first:after]
    if len(texts) == 1 and texts[0].startswith("["):
        return args
    return [*args[:first], json.dumps(texts), *args[after:]]
