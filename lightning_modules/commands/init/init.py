"""``aegpo init``: a commented config, prompts and a reward of one's own, to start from."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.arguments.messages import UserError, debugging, fail
from lightning_modules.arguments.parser import OneLineParser
from lightning_modules.commands.init.choices import (
    OWN,
    Choice,
    default_gpus,
    default_reward,
    models,
    rewards,
)
from lightning_modules.commands.init.files import commands_of, files_of

_DESCRIPTION = (
    "Write a folder to start from: a short config that is laid over the shipped ones, prompts, and "
    "a reward to fill in. What is left out is asked for at a terminal."
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one line and status 2.

    Args:
        args: Arguments after `init` instead of those of the process.
    """
    parser = _parser()
    given = parser.parse_args(list(sys.argv[2:] if args is None else args))
    try:
        folder = Path(str(given.out)).expanduser()
        choice = _choice(given, folder, sys.stdin.isatty())
        _write(folder, files_of(choice), bool(given.overwrite))
    except (UserError, OSError) as error:
        if debugging():
            raise
        fail(str(error))
    print("\n".join([f"cd {shlex.quote(str(folder))}", *commands_of(choice)]))


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="aegpo init", description=_DESCRIPTION)
    known = ", ".join(models())
    parser.add_argument("--out", type=str, default="my_run", help="folder that is written")
    parser.add_argument(
        "--model", type=str | None, help=f"{known}, or the folder of a pipeline of such a model"
    )
    parser.add_argument(
        "--reward",
        type=str | None,
        help=f"{', '.join(rewards())}; or {OWN}: a class in a file that is written for you",
    )
    parser.add_argument(
        "--prompts", type=str | None, help="file of prompts, which is copied: .txt, .jsonl or .csv"
    )
    parser.add_argument(
        "--gpus", type=int | None, help="number of GPUs; 0 for the CPU, on a tiny random model"
    )
    parser.add_argument("--memory", type=int | None, help="GB of memory of each GPU")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace files in the folder")
    return parser


def _choice(given: Any, folder: Path, asks: bool) -> Choice:
    """What was given and, at a terminal, answered; a default for the rest."""
    ask: Callable[[str, str], str] = _ask if asks else lambda question, default: default
    model = given.model or ask(f"Which model? ({', '.join(models())}, or a folder)", "shapes")
    reward = given.reward or ask(
        f"Which reward? ({', '.join(rewards())}, or {OWN} for one of your own)",
        default_reward(model),
    )
    prompts = given.prompts or ask("A file with your prompts? (empty for some to begin with)", "")
    gpus = given.gpus
    if gpus is None:
        gpus = _number(ask("How many GPUs? (0 for the CPU)", str(default_gpus(model))))
    memory = given.memory
    if memory is None:
        memory = _number(ask("How many GB has each?", "24")) if gpus else 0
    return Choice.of(folder.absolute().name, model, reward, prompts, gpus, memory)


def _ask(question: str, default: str) -> str:
    try:
        answer = input(f"{question} [{default}] ").strip()
    except EOFError:
        answer = ""
    return answer or default


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{text!r} is no number; give one such as 1")
    return int(text)


def _write(folder: Path, files: dict[str, str], overwrite: bool) -> None:
    """Write the files, all of which are looked at before the first is written."""
    there = [name for name in files if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(
            f"{folder / there[0]} is there already; give another --out, or --overwrite true"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(files)} into {folder}")
