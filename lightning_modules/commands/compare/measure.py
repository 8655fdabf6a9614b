"""Makes the runs of a comparison and reads what they logged."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aegpo.study.learning_curves import Curve
from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.compare.run import ComparedRun, Process, start
from lightning_modules.commands.compare.settings import Comparison
from lightning_modules.commands.run_logs import read_scalars

Start = Callable[[ComparedRun, bool, bool], Process]

MOST_MISSING = 0.5
"""Share of a run's scores that may be no number; with more, little of its curve was measured."""
_ITS_OWN = (UserError, ValueError, OSError)
"""What the files of one run can raise: it costs that run, never those beside it."""


class UnfinishedError(UserError):
    """A run that has not come to its budget, and goes on when it is started again."""


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


def measure(
    settings: Comparison,
    runs: Sequence[ComparedRun],
    budget_of: Callable[[str], int],
    start_run: Start,
) -> tuple[dict[str, Curve], dict[str, str]]:
    """Make the runs that are missing, and read all that are finished.

    Args:
        settings: What is compared, and how.
        runs: The runs.
        budget_of: Model evaluations of a run, by the name of its method.
        start_run: Starts a run.

    Returns:
        Curves, and what went wrong, by the name of the run.
    """

    def finish(run: ComparedRun) -> str | None:
        try:
            read_curve(run, settings.metric, budget_of(run.method))
        except UnfinishedError as error:
            return str(error)
        except _ITS_OWN:
            pass  # another start would end with the same log; the table says what is wrong
        return None

    failures: dict[str, str] = {}
    if not settings.report_only:
        failures = run_all(runs, settings.jobs, finish, start_run)
    curves: dict[str, Curve] = {}
    for run in runs:
        if run.is_done():
            try:
                curves[run.name] = read_curve(run, settings.metric, budget_of(run.method))
            except _ITS_OWN as error:
                failures[run.name] = _say_failed(run, str(error))
    return curves, failures


def _say_failed(run: ComparedRun, problem: str) -> str:
    print(f"{run.name}: failed: {problem}", flush=True)
    return problem


def _last_line(output: Path, status: int) -> str:
    lines = output.read_text(errors="replace").split("\n") if output.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    line = next((line for line in reversed(said) if line.startswith("error: ")), None)
    return f"{line or (said or ['no output'])[-1]} (status {status}, see {output})"
