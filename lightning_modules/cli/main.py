"""What the console scripts run: answers at once what needs no torch, then hands over to the CLI.

Importing Lightning takes seconds and fails outright where torch and torchvision do not match, so
the version, the list of commands, a mistyped command, what shows of a mistake in a config, and the
environment half of ``doctor`` are dealt with before it is imported.
"""

from __future__ import annotations

import os
import sys

from aegpo import __version__
from lightning_modules.arguments.early import early_mistake, missing_option
from lightning_modules.arguments.messages import debugging, did_you_mean, fail
from lightning_modules.arguments.shipped import with_shipped_configs
from lightning_modules.arguments.short_help import asks_for_short_help, short_help
from lightning_modules.arguments.sources import OnlyImportTells
from lightning_modules.cli.process import (
    another_rank,
    end_without_stuck_threads,
    keep_freed_memory,
    program_name,
    quieten_libraries,
    respect_cpu_quota,
    spin_briefly,
    tell_warnings_in_a_line,
    watch_cores,
)
from lightning_modules.commands import COMMANDS

_HELP = """\
usage: {prog} <command> --config FILE [--config FILE ...] [--key value ...]

A config that comes with the package needs no path: --config shapes --config overlays/grpo

{commands}

Every argument of every class is a key; what they mean:
  {prog} fit --help
  {prog} fit --model.help lightning_modules.AEGPOModule
A later --config is merged over an earlier one; --print_config shows the result.

  --version   print the version and leave
  --debug     show the traceback of an error (or set AEGPO_DEBUG=1)
"""


def main() -> None:
    """Run the program with ``sys.argv``; the target of the scripts ``aegpo`` and ``lightning``."""
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["AEGPO_DEBUG"] = "1"  # in the environment, so that DDP's other processes see it
    prog = program_name()
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"

    if command == "--version":
        print(f"aegpo {__version__}")
        return
    if command in ("-h", "--help"):
        commands = "\n".join(f"  {row.name:<12}  {row.help}" for row in COMMANDS.values())
        print(_HELP.format(prog=prog, commands=commands), end="")
        return
    if command not in COMMANDS and not command.startswith("-"):
        known = ", ".join(COMMANDS)
        hint = did_you_mean(command, COMMANDS)
        fail(f"{prog} has no command {command!r}{hint} (commands: {known})")
    if command in COMMANDS and _shows_help(prog, command):
        return
    sys.argv[1:] = with_shipped_configs(sys.argv[1:])  # DDP's other processes are given the same
    keep_freed_memory()
    respect_cpu_quota()
    spin_briefly()
    watch_cores()
    quieten_libraries()
    tell_warnings_in_a_line()
    # So that `class_path: my_module.MyReward` finds a file beside the user's config. Last, so that
    # a folder named `callbacks` in there does not stand in for ours.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    if command in COMMANDS and not COMMANDS[command].on_every_rank and another_rank():
        print(f"{command} runs on one process; rank {another_rank()} leaves it to rank 0")
        return
    if command not in COMMANDS or COMMANDS[command].run_program():
        _refuse_early(command)
        _run()


def _shows_help(prog: str, command: str) -> bool:
    """Print the short help of a command that takes a config, if that is asked for."""
    row = COMMANDS[command]
    if not row.takes_config or not asks_for_short_help(sys.argv[2:]):
        return False
    try:
        print(short_help(prog, command, row.help, row.path), end="")
    except OnlyImportTells:
        return False  # the parser's then
    return True


def _refuse_early(command: str) -> None:
    """Refuse what is seen to be wrong before torch is imported, in the words of the parser."""
    if command not in COMMANDS or debugging():
        return
    row = COMMANDS[command]
    try:
        options = row.options()
    except OnlyImportTells:
        options = []
    mistake = early_mistake(sys.argv[1:], COMMANDS, row.texts, options)
    mistake = mistake or missing_option(sys.argv[1:], row.method and row.path)
    if mistake is not None:
        fail(mistake)


def _run() -> None:
    """Import the CLI and run it; a broken torchvision gets one line instead of a traceback."""
    try:
        from lightning_modules.cli.lightning_cli import main as run_cli
    except (ImportError, RuntimeError) as error:
        if debugging() or "torchvision" not in str(error):
            raise
        fail(
            "torch and torchvision do not match (`import torchvision` fails with: "
            f"{str(error).splitlines()[0]}); install both from the same index, then run "
            "`aegpo doctor`"
        )
    try:
        run_cli()
    except BaseException as error:
        end_without_stuck_threads(error)
        raise
    end_without_stuck_threads(None)


if __name__ == "__main__":
    main()
