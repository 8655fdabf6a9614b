"""``aegpo init``: a commented config, prompts and a reward of one's own, to start from."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.arguments.messages import UserError, debugging, fail
from lightning_modules.arguments.parser import OneLineParser
from lightning_modules.commands.init.choices import (
    LARGE,
    OWN,
    SHAPES,
    Choice,
    default_gpus,
    default_reward,
    models,
    rewards,
)
from lightning_modules.commands.init.files import CONFIG, commands_of, files_of, said

_DESCRIPTION = (
    "Write a folder to start from: a short config that is laid over the shipped ones, prompts, and "
    "a reward to fill in. What is left out is asked for at a terminal, and is a default elsewhere."
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
        if not given.overwrite:
            _refuse_taken(folder, [CONFIG])  # before anybody answers questions
        choice = _choice(given, folder, sys.stdin.isatty())
        files = files_of(choice)
        if not given.overwrite:
            _refuse_taken(folder, files)
        _write(folder, files)
    except (UserError, OSError) as error:
        if debugging():
            raise
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    print(f"wrote {', '.join(files)} into {folder}: {said(choice)}")
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

    def so_far(
        model: str,
        reward: str | None = None,
        prompts: str = "",
        gpus: int | None = None,
        memory: int = LARGE,
    ) -> Choice:
        """What is known, with defaults for the rest; one line says what cannot be."""
        reward = reward or default_reward(model)
        gpus = default_gpus(model) if gpus is None else gpus
        return Choice.of(folder.absolute().name, model, reward, prompts, gpus, memory)

    def settled(flag: Any, question: str, default: str, check: Callable[[str], object]) -> str:
        if flag in (None, ""):
            return _answer(question, default, check) if asks else default
        check(str(flag))
        return str(flag)

    model = settled(
        given.model, f"Which model? ({', '.join(models())}, or a folder)", SHAPES, so_far
    )
    usual = default_reward(model)
    known = ", ".join(dict.fromkeys([usual, *rewards()]))
    reward = settled(
        given.reward,
        f"Which reward? ({known}, or {OWN} for one of your own)",
        usual,
        lambda text: so_far(model, text),
    )
    prompts = settled(
        given.prompts,
        "A file with your prompts? (empty for some to begin with)",
        "",
        lambda text: so_far(model, reward, text),
    )
    gpus = settled(
        given.gpus,
        "How many GPUs? (0 for the CPU)",
        str(default_gpus(model)),
        lambda text: so_far(model, reward, prompts, _number(text)),
    )
    if gpus == "0":
        return so_far(model, reward, prompts, 0, 0)
    memory = settled(
        given.memory,
        "How many GB has each?",
        "24",
        lambda text: so_far(model, reward, prompts, int(gpus), _number(text)),
    )
    return so_far(model, reward, prompts, int(gpus), int(memory))


def _answer(question: str, default: str, check: Callable[[str], object]) -> str:
    """Ask until an answer can be; at the end of the input the default."""
    while True:
        try:
            answer = input(f"{question} [{default}] ").strip() or default
        except EOFError:
            return default
        try:
            check(answer)
        except UserError as error:
            print(error)
        else:
            return answer


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{text!r} is no number; give one such as 1") from None


def _refuse_taken(folder: Path, names: Iterable[str]) -> None:
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise UserError(
            f"{folder / there[0]} is there already; give another --out, or --overwrite true"
        )


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
