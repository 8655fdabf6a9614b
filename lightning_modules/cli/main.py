"""What the console scripts run: answers at once what needs no torch, then hands over to the CLI.

Importing Lightning takes seconds and fails outright where torch and torchvision do not match, so
the version, the list of commands, a mistyped command and the environment half of ``doctor`` are
dealt with before it is imported.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from importlib import import_module
from pathlib import Path

from aegpo import __version__
from aegpo.utilities.findings import report
from lightning_modules.cli.process import _keep_freed_memory, _respect_cpu_quota
from lightning_modules.commands import COMMANDS, STANDALONE
from lightning_modules.commands.doctor.environment import check_environment

_HELP = """\
usage: {prog} <command> --config FILE [--config FILE ...] [--key value ...]

{commands}

Every argument of every class is a key; what they mean:
  {prog} fit --help
  {prog} fit --model.help lightning_modules.AEGPOModule
A later --config is merged over an earlier one; --print_config shows the result.

  --version   print the version and leave
  --debug     show the traceback of an error (or set AEGPO_DEBUG=1)
"""
_DOCTOR_HELP = """\
usage: {prog} doctor [--config FILE ...] [--key value ...]

Checks versions, torch against torchvision, accelerator, attention backend and disk space. With a
config it also builds the model and the data, draws one small rollout, and checks that the first
update's probability ratio is 1 and its gradient finite. Exit status 1 if a check fails.
"""


def main() -> None:
    """Run the program with ``sys.argv``; the target of the scripts ``aegpo`` and ``lightning``."""
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["AEGPO_DEBUG"] = "1"  # in the environment, so that DDP's other processes see it
    prog = _program_name()
    arguments = sys.argv[1:]
    command = arguments[0] if arguments else "--help"

    if command == "--version":
        print(f"aegpo {__version__}")
        return
    if command in ("-h", "--help"):
        commands = "\n".join(f"  {name:<12}  {text}" for name, text in COMMANDS.items())
        print(_HELP.format(prog=prog, commands=commands), end="")
        return
    if command not in COMMANDS and not command.startswith("-"):
        raise SystemExit(_unknown_command(prog, command))
    if command == "doctor":
        if "-h" in arguments or "--help" in arguments:
            print(_DOCTOR_HELP.format(prog=prog), end="")
            return
        healthy = report(check_environment(Path("runs")))
        if not healthy:
            raise SystemExit(1)
        if len(arguments) == 1:
            return
    _keep_freed_memory()
    _respect_cpu_quota()
    # Where it is installed for 8-bit optimizers, it warns of a kernel that is used on CPUs only.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # So that `class_path: my_module.MyReward` finds a file beside the user's config. Last, so that
    # a folder named `callbacks` in there does not stand in for ours.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    if command in STANDALONE:
        import_module(STANDALONE[command]).main()
        return
    _run()


def _run() -> None:
    """Import the CLI and run it; a broken torchvision gets one line instead of a traceback."""
    try:
        from lightning_modules.cli.lightning_cli import main as run_cli
    except (ImportError, RuntimeError) as error:
        if os.environ.get("AEGPO_DEBUG") or "torchvision" not in str(error):
            raise
        print(
            "error: torch and torchvision do not match (`import torchvision` fails with: "
            f"{str(error).splitlines()[0]}); install both from the same index, then run "
            "`aegpo doctor`",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    run_cli()


def _program_name() -> str:
    name = Path(sys.argv[0]).name
    return "python -m aegpo" if name in ("__main__.py", "main.py") else name


def _unknown_command(prog: str, command: str) -> int:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(COMMANDS)
    print(f"error: {prog} has no command {command!r}{hint} (commands: {known})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
