"""Texts on the command line, several after one option."""

from __future__ import annotations

import json

TAKE_TEXTS = ("export", "sample")
"""Commands whose ``--prompts`` are texts; those of ``signals`` are a number."""


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
