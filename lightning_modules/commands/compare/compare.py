"""``aegpo compare``: methods × seeds at an equal budget of model evaluations, from one file.

This process never loads torch: it has the configs resolved, keeps the runs going, reads the logs
that Lightning wrote and computes the table. Killed anywhere, it continues to the same table.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aegpo.study.learning_curves import Curve
from lightning_modules.arguments.messages import UserError, debugging, fail
from lightning_modules.arguments.parser import OneLineParser
from lightning_modules.commands.compare.report import write_report
from lightning_modules.commands.compare.run import ComparedRun, Process, start
from lightning_modules.commands.compare.settings import Comparison
from lightning_modules.commands.run_logs import read_scalars

Resolve = Callable[[list[list[str]]], list[dict[str, Any]]]
Start = Callable[[ComparedRun, bool, bool], Process]

MOST_MISSING = 0.5
"""Share of a run's scores that may be no number; with more, little of its curve was measured."""
_ITS_OWN = (UserError, ValueError, OSError)
"""What the files of one run can raise: it costs that run, never those beside it."""


class UnfinishedError(UserError):
    """A run that has not come to its budget, and goes on when it is started again."""


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


def run_all(
    runs: Sequence[ComparedRun],
    jobs: int,
    finish: Callable[[ComparedRun], str | None],
    start_run: Start = start,
    pause: float = 0.2,
) -> dict[str, str]:
    """Run what is not done yet, several side by side; one failure does not stop the others.

    Args:
        runs: The runs, in the order of their start.
        jobs: How many run side by side.
        finish: Called when a run has ended well; returns what is wrong with it, or None.
        start_run: Starts a run: the run, whether it resumes, whether it is alone.
        pause: Seconds between two looks at the processes.

    Returns:
        What went wrong, by the name of the run.
    """
    waiting = deque(run for run in runs if not run.is_done())
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before", flush=True)
    active: dict[int, tuple[ComparedRun, Process, float]] = {}
    failures: dict[str, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                try:
                    resume = run.prepare()
                    print(f"{run.name}: {'resumed' if resume else 'started'}", flush=True)
                    active[id(run)] = (run, start_run(run, resume, jobs == 1), time.monotonic())
                except _ITS_OWN as error:
                    failures[run.name] = _say_failed(run, f"could not be started: {error}")
            for key, (run, process, began) in list(active.items()):
                status = process.poll()
                if status is None:
                    continue
                del active[key]
                problem = _last_line(run.output, status) if status else finish(run)
                if problem is None:
                    run.mark(done=True)
                    print(f"{run.name}: done in {time.monotonic() - began:.0f} s", flush=True)
                else:
                    failures[run.name] = _say_failed(run, problem)
            if active:
                time.sleep(pause)
    finally:
        for _, process, _ in active.values():
            process.kill()
            process.wait()
    return failures


def read_curve(run: ComparedRun, metric: str, budget: int) -> Curve:
    """Read the learning curve of a finished run from its log.

    Args:
        run: The run.
        metric: The score's tag.
        budget: Model evaluations that the run was to spend.

    Returns:
        Score against evaluations, up to the budget at least.

    Raises:
        UnfinishedError: If the run ended before its budget.
        UserError: If the score was not logged, or is no number at either end or too often.
        ValueError: If what was logged is no curve.
    """
    logged = read_scalars(run.folder, [metric, "cost/evaluations"])
    scores, costs = logged[metric], logged["cost/evaluations"]
    until = max(scores or costs, default=-1)
    spent = max((cost for iteration, cost in costs.items() if iteration <= until), default=0.0)
    if spent < budget * (1 - 1e-6):  # loggers keep 24 bits
        raise UnfinishedError(
            f"the last {metric!r} was measured at {spent:,.0f} evaluations, before the budget of "
            f"{budget:,}"
        )
    if not scores:
        raise UserError(f"no {metric!r} was logged; compare a tag that docs/logging.md lists")
    missing = sum(not math.isfinite(score) for score in scores.values())
    ends = {"first": scores[min(scores)], "last": scores[until]}
    lost = [name for name, score in ends.items() if not math.isfinite(score)]
    if lost or missing > MOST_MISSING * len(scores):
        raise UserError(
            f"{missing} of {len(scores)} {metric!r} are not finite"
            + (f", the {' and the '.join(lost)} among them" if lost else "")
            + ": images could not be scored; mend the reward, then delete the run's folder, and it "
            "is run again"
        )
    curve = Curve.from_logs(scores, costs)
    ends_at = np.append(curve.cost[:-1], max(curve.cost[-1], budget))
    return Curve(ends_at, curve.score, curve.missing)


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
        runs = settings.runs(configs)

        def finish(run: ComparedRun) -> str | None:
            try:
                read_curve(run, settings.metric, settings.budget_of(run.method))
            except UnfinishedError as error:
                return str(error)
            except _ITS_OWN:
                pass  # another start would end with the same log; the table says what is wrong
            return None

        failures: dict[str, str] = {}
        if not settings.report_only:
            failures = run_all(runs, settings.jobs, finish, start_run)
        methods: dict[str, dict[int, Curve]] = {}
        for run in sorted(runs, key=lambda run: list(settings.methods).index(run.method)):
            if run.is_done():
                try:
                    curve = read_curve(run, settings.metric, settings.budget_of(run.method))
                except _ITS_OWN as error:
                    failures[run.name] = _say_failed(run, str(error))
                    continue
                methods.setdefault(run.method, {})[run.seed] = curve
        if settings.reference not in methods:
            why = [failures[run.name] for run in runs if run.name in failures]
            raise UserError(
                f"no run of the reference {settings.reference!r} was finished and can be read"
                + (f" ({why[0]})" if why else "")
                + f"; see {out / settings.reference}/seed_*/output.txt"
            )
        print(write_report(settings, methods, failures, out))
    return not failures


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


def _say_failed(run: ComparedRun, problem: str) -> str:
    print(f"{run.name}: failed: {problem}", flush=True)
    return problem


def _last_line(output: Path, status: int) -> str:
    lines = output.read_text(errors="replace").split("\n") if output.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    line = next((line for line in reversed(said) if line.startswith("error: ")), None)
    return f"{line or (said or ['no output'])[-1]} (status {status}, see {output})"
