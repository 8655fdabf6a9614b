"""The argument parser of commands that have arguments of their own: a mistake is one line."""

from __future__ import annotations

import sys
from typing import NoReturn

from jsonargparse import ArgumentParser

from lightning_modules.cli_errors import explain_parsing


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
