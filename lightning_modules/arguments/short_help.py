"""``--help`` of a command, read from sources: its own options, then what is set most often.

The parser's own help has hundreds of lines and needs torch; it is ``--help all``.
"""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from lightning_modules.arguments.sources import function_source

Rows = list[tuple[str, str]]
"""Options with what they mean."""
OF_A_RUN: Rows = [
    ("--config FILE", "a config, yours or one of the package; a later one is laid over it"),
    ("--ckpt_path PATH", "a checkpoint: last, best or a file; fit goes on with it"),
    ("--run_name NAME", "folder of the run; the config's name and a number by default"),
    ("--seed_everything N", "of everything that is drawn"),
    ("--trainer.max_epochs N", "when the run ends"),
    ("--trainer.check_val_every_n_epoch N", "how often the held-out prompts are scored"),
    ("--trainer.accelerator NAME", "cpu, gpu or auto"),
    ("--trainer.devices N", "number of GPUs, or of processes on the CPU"),
    ("--trainer.precision NAME", "of the updates: 32-true, bf16-mixed"),
    ("--model.policy.pretrained MODEL", "hub id or folder of the model, shapes, or tiny"),
    ("--model.policy.lora_rank N", "of the adapters that are trained"),
    ("--model.policy.resolution N", "pixels of the images"),
    ("--model.reward CLASS", "what is trained on: my_module.MyReward, aegpo.rewards.PickScore"),
    ("--model.evaluation_rewards+ CLASS", "what is watched beside it on held-out prompts"),
    ("--model.optimizer.lr X", "learning rate"),
    ("--model.num_steps N", "denoising steps of the images that are trained on"),
    ("--model.micro_batch_size N", "samples at once in an update; memory goes by it"),
    ("--data.train_file FILE", "prompts: .txt, .jsonl, .csv, or a set of the package"),
    ("--data.batch_size N", "prompts in an iteration, of all processes together"),
    ("--data.batches_per_epoch N", "iterations in an epoch"),
]
"""The twenty that matter first; a test looks them up in the parser."""
_HIDDEN = ("model", "datamodule", "run", "dataloaders", "train_dataloaders", "val_dataloaders")
_SECTION = re.compile(r"^[A-Z][a-z]+:\s*$")


def asks_for_short_help(arguments: Sequence[str]) -> bool:
    """Whether a command's help is asked for, and not all of it.

    Args:
        arguments: What is typed after the command.

    Returns:
        Whether it is the short one.
    """
    places = [place for place, word in enumerate(arguments) if word in ("-h", "--help")]
    return bool(places) and list(arguments[places[0] + 1 : places[0] + 2]) != ["all"]


def short_help(prog: str, command: str, help_line: str, path: str) -> str:
    """Write a command's help.

    Args:
        prog: Name of the program.
        command: Name of the command.
        help_line: What it does.
        path: Module and name of its function, or of Lightning's method.

    Returns:
        Lines with an end.

    Raises:
        OnlyImportTells: If the function's source cannot be read.
    """
    function = function_source(path)
    own = [] if path.startswith("lightning.") else list(_own_options(function))
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    parts = [f"usage: {prog} {command} --config FILE [--config FILE ...] [--key value ...]"]
    parts += [f"{help_line[:1].upper()}{help_line[1:]}."]
    if own:
        parts += [f"its own options:\n{_table([OF_A_RUN[0], *own], width)}"]
        parts += [f"those of the run that matter first:\n  {prog} fit --help"]
    else:
        parts += [f"what is set most often:\n{_table(OF_A_RUN, width)}"]
    return "\n\n".join([*parts, _more(prog, command)]) + "\n"


def required_options(path: str) -> Rows:
    """The options that a command's function has no default for.

    Args:
        path: Module and name of the function.

    Returns:
        Each with what it means.

    Raises:
        OnlyImportTells: If its source cannot be read.
    """
    function = function_source(path)
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    names = [argument.arg for argument, default in pairs if default is None]
    said = _documented(function)
    return [(name, said.get(name, "")) for name in names]


def _more(prog: str, command: str) -> str:
    return (
        "all options, those of Lightning's trainer among them:\n"
        f"  {prog} {command} --help all\n"
        "those of a class, and what a config comes to:\n"
        f"  {prog} {command} --model.help lightning_modules.AEGPOModule\n"
        f"  {prog} {command} --config shapes --print_config"
    )


def _own_options(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    taken = function.args
    named = [*taken.posonlyargs, *taken.args][1:]
    missing: list[ast.expr | None] = [None] * (len(named) - len(taken.defaults))
    pairs = [*zip(named, [*missing, *taken.defaults], strict=True)]
    pairs += zip(taken.kwonlyargs, taken.kw_defaults, strict=True)
    said = _documented(function)
    # What has to be given first.
    for argument, default in sorted(pairs, key=lambda pair: pair[1] is not None):
        if argument.arg in _HIDDEN or argument.arg == "weights_only":
            continue
        meaning = said.get(argument.arg, "")
        if default is None:
            meaning += " (required)"
        elif ast.unparse(default) not in ("None", "False"):
            meaning += f" ({ast.unparse(default)} by default)"
        yield f"--{argument.arg}", meaning


def _documented(function: ast.FunctionDef) -> dict[str, str]:
    """What ``Args:`` of a docstring says of each argument, on one line."""
    lines = iter((ast.get_docstring(function) or "").splitlines())
    for line in lines:
        if line.strip() == "Args:":
            break
    said: dict[str, str] = {}
    name = ""
    for line in lines:
        if _SECTION.match(line):
            break
        start = re.match(r" {4}(\w+): (.+)", line)
        if start is not None:
            name, said[start[1]] = start[1], start[2]
        elif name and line.strip():
            said[name] += f" {line.strip()}"
    return {name: text.removesuffix(".") for name, text in said.items()}


def _table(rows: Iterable[tuple[str, str]], width: int) -> str:
    listed = list(rows)
    left = max(len(option) for option, _ in listed) + 4
    lines = []
    for option, said in listed:
        lines += textwrap.wrap(
            said,
            width,
            initial_indent=f"  {option}".ljust(left),
            subsequent_indent=" " * left,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
