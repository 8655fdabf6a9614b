"""A program that resolves configs as `fit` would, for `aegpo compare`, which does not load torch.

It reads a JSON list of argument lists from standard input and writes a JSON list with the config
that each of them comes to, defaults included.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

import yaml

from lightning_modules.cli.process import quieten_libraries


def resolve(arguments: list[str]) -> dict[str, Any]:
    """Return the config of ``aegpo fit <arguments>``, every default written out.

    Args:
        arguments: Arguments of `fit`.

    Returns:
        What ``--print_config`` prints, as nested dictionaries.
    """
    from lightning_modules.cli.lightning_cli import main as run_cli  # imports what is quiet by now

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            run_cli(["fit", *arguments, "--print_config"])
        except SystemExit as stopped:
            if stopped.code not in (0, None):
                raise
    resolved: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return resolved


if __name__ == "__main__":
    quieten_libraries()
    sys.path.append(os.getcwd())  # `class_path: my_module.MyReward`, as the console program has it
    json.dump([resolve(arguments) for arguments in json.load(sys.stdin)], sys.stdout)
