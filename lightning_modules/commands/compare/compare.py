"""``aegpo compare``: methods × seeds at an equal budget of model evaluations, from one file.

This process never loads torch: it has the configs resolved, keeps the runs going, reads the logs
that Lightning wrote and computes the table. Killed anywhere, it continues to the same table.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aegpo.study.learning_curves import Curve
from lightning_modules.arguments.messages import UserError, debugging, fail
from lightning_modules.arguments.parser import OneLineParser
from lightning_modules.commands.compare.measure import Start, measure
from lightning_modules.commands.compare.pilot import Choice, chosen_values
from lightning_modules.commands.compare.report import write_report
from lightning_modules.commands.compare.run import start
from lightning_modules.commands.compare.settings import Comparison

Resolve = Callable[[list[list[str]]], list[dict[str, Any]]]


def resolve_in_subprocess(arguments: list[list[str]]) -> list[dict[str, Any]]:
    """Have another process resolve configs, which takes torch.

    Args:
        arguments: Arguments of `fit`, one list for each config.

    Returns:
        The configs with every default written out.

    Raises:
        SystemExit: If a config has a mistake; the process has said which.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lightning_modules.cli.resolve_configs"],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    resolved: list[dict[str, Any]] = json.loads(done.stdout)
    return resolved


def compare(
    settings: Comparison,
    folder: Path,
    resolve: Resolve = resolve_in_subprocess,
    start_run: Start = start,
) -> bool:
    """Make the runs that are missing, then the table and the figure.

    Args:
        settings: What is compared.
        folder: Folder that relative paths of configs start from.
        resolve: Resolves configs.
        start_run: Starts a run.

    Returns:
        Whether every run was finished.

    Raises:
        UserError: If a setting cannot be, or no run of the reference was finished.
    """
    settings.validate()
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if settings.report_only else _only_one(out):
        arguments = settings.arguments(folder)
        configs = dict(zip(arguments, resolve(list(arguments.values())), strict=True))
        choices, failures = _pilot(settings, configs, start_run)
        chosen = {name: choice.best.values for name, choice in choices.items() if choice.best}
        known = {
            name: config
            for name, config in configs.items()
            if name in chosen or name not in choices
        }
        runs = settings.runs(known, chosen)
        curves, failed = measure(settings, runs, settings.budget_of, start_run)
        failures |= failed
        methods: dict[str, dict[int, Curve]] = {}
        for run in sorted(runs, key=lambda run: list(settings.methods).index(run.method)):
            if run.name in curves:
                methods.setdefault(run.method, {})[run.seed] = curves[run.name]
        if settings.reference not in methods:
            raise UserError(
                f"no run of the reference {settings.reference!r} was finished and can be read"
                + (f" ({next(iter(failures.values()))})" if failures else "")
                + f"; see {out / settings.reference}/seed_*/output.txt"
            )
        print(write_report(settings, methods, failures, out, choices))
    return not failures


def _pilot(
    settings: Comparison, configs: dict[str, dict[str, Any]], start_run: Start
) -> tuple[dict[str, Choice], dict[str, str]]:
    """Make the pilot's runs that are missing; what each method comes to, and what went wrong."""
    pilot = settings.pilot
    if pilot is None:
        return {}, {}
    runs = pilot.runs(configs, settings.evaluate_every, Path(settings.out))
    curves, failures = measure(settings, runs, lambda _: pilot.budget, start_run)
    choices = pilot.choose(list(settings.methods), curves)
    for name, choice in choices.items():
        if choice.best is None:
            failures[name] = "no values of its pilot were measured with every seed"
    if choices:
        print(chosen_values(choices, pilot.by), flush=True)
    return choices, failures


def main(args: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one line and status 2, a failed run status 1.

    Args:
        args: Arguments after `compare` instead of those of the process.
    """
    parser = OneLineParser(prog="aegpo compare", description="Compare methods at equal compute.")
    parser.add_argument("--config", action="config", help="file of the comparison")
    parser.add_class_arguments(Comparison)
    given = parser.parse_args(sys.argv[2:] if args is None else args).as_dict()
    files = given.pop("config") or []
    folder = Path(str(files[-1])).parent if files else Path()
    # So that the runs are ended too; whoever calls this gets back what it had.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if not compare(Comparison(**given), folder):
            raise SystemExit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except UserError as error:
        if debugging():
            raise
        fail(str(error))
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the folder, so that two comparisons never share one (where the system has flock)."""
    with (out / ".lock").open("a") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another comparison is at work in {out}; wait for it, or choose another --out"
                ) from None
        yield
