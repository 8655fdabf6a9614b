"""Seconds an iteration of the quickstart takes, on free cores and with half of them busy.

    python benchmarks threads                # about five minutes on two cores
    python benchmarks threads --prompts 2 --settings ours free_cores

Every setting is one run in a process of its own: first alone, then beside processes that only
count, one for every second core (`half_busy.py`). Of either half the first iterations are left out:
`callbacks.FreeCores` needs one or two to see what has changed. Run it on a machine that does
nothing else; the table grows as results come.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SETTINGS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "openmp": ("OpenMP's own 300,000 turns", {"GOMP_SPINCOUNT": "300000"}, []),
    "ours": ("1,000 turns, as set here", {}, []),
    "passive": ("OMP_WAIT_POLICY=PASSIVE", {"OMP_WAIT_POLICY": "PASSIVE"}, []),
    "one": ("OMP_NUM_THREADS=1", {"OMP_NUM_THREADS": "1"}, []),
    "free_cores": (
        "callbacks.FreeCores",
        {},
        ["--trainer.callbacks+=callbacks.FreeCores", "--trainer.callbacks.every_n_seconds=1"],
    ),
}
WARM_UP = 2  # iterations of either half that are left out
LONGEST = 150  # seconds of one setting


def main(typed: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks threads", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--iterations", type=int, default=5, help="that count, of either half")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--prompts", type=int, default=8, help="of an iteration")
    parser.add_argument("--budget", type=float, default=360, help="seconds in all")
    arguments = parser.parse_args(typed)
    end = time.monotonic() + arguments.budget
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; load before: {os.getloadavg()[0]:.2f}", flush=True)
    print(
        f"{'setting':<28} {'free':>7} {'half busy':>10}   seconds an iteration (medians)",
        flush=True,
    )
    found: dict[str, list[float]] = {}
    for name in arguments.settings:
        left = end - time.monotonic()
        if left < 20:
            print(
                f"{SETTINGS[name][0]:<28} left out: {arguments.budget:.0f} s are over", flush=True
            )
            continue
        found[name] = measured(name, arguments.iterations, arguments.prompts, min(left, LONGEST))
        print(f"{SETTINGS[name][0]:<28} {found[name][0]:7.2f} {found[name][1]:10.2f}", flush=True)
    for number, case in enumerate(("free", "half busy")):
        best = min((times[number] for times in found.values() if times[number] > 0), default=0.0)
        near = [SETTINGS[name][0] for name, times in found.items() if times[number] <= 1.05 * best]
        print(f"within 5 % of the best, {case}: {', '.join(near)}")


def measured(name: str, iterations: int, prompts: int, limit: float) -> list[float]:
    """Median seconds an iteration, alone and beside busy processes; NaN where it took too long."""
    label, variables, options = SETTINGS[name]
    env = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [
        *(sys.executable, "-c", "from lightning_modules.cli.main import main; main()", "fit"),
        *("--config", "configs/shapes.yaml", "--trainer.logger=false"),
        *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
        "--trainer.enable_model_summary=false",
        "--trainer.without_callbacks=[RolloutCheckpoint,RolloutProgressBar,SampleLogger,ScoreTable]",
        *("--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"),
        f"--data.batches_per_epoch={2 * (WARM_UP + iterations) + 1}",
        f"--data.batch_size={prompts}",
        *options,
        "--trainer.callbacks+=half_busy.HalfBusy",
        f"--trainer.callbacks.alone={WARM_UP + iterations}",
    ]
    paths = [str(ROOT / "benchmarks"), str(ROOT)]
    env |= {"PYTHONPATH": os.pathsep.join(paths), **variables}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it started ends with it
    ) as run:
        try:
            output, errors = run.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            output, errors = run.communicate()
    if run.returncode == -signal.SIGKILL:
        print(f"{label}: ended after {limit:.0f} s", flush=True)
    elif run.returncode != 0:
        print(f"{label}: status {run.returncode}\n{errors[-2000:]}", flush=True)
    times: dict[str, list[float]] = {"free": [], "busy": []}
    for line in output.splitlines():
        if line.startswith("iteration "):
            _, case, seconds = line.split()
            times[case].append(float(seconds))
    return [
        statistics.median(times[case][WARM_UP:]) if times[case][WARM_UP:] else float("nan")
        for case in ("free", "busy")
    ]


if __name__ == "__main__":
    main()
