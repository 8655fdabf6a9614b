"""How fast a finished run was, from its logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_modules.commands.run_logs import read_scalars

PHASES = ("probe", "encode", "rollout", "reward", "advantage", "update")
"""What `seconds/<phase>` is logged for."""


@dataclass(frozen=True)
class MeasuredRate:
    """What was measured in a run.

    Args:
        per_second: Model evaluations per second of training, all processes together; rewards and
            updates are part of the time.
        peak_gib: Largest peak memory that was logged, None without any.
        source: Where the numbers come from.
    """

    per_second: float
    peak_gib: float | None
    source: str


def read_rate(folder: Path) -> MeasuredRate:
    """Read the rate of a run that `callbacks.CostLogger` logged.

    The first iteration warms up and is left out, unless it is the only one.

    Args:
        folder: The run's log folder, with TensorBoard's event files or `metrics.csv`.

    Returns:
        The rate.

    Raises:
        ValueError: If nothing of it is in there.
    """
    tags = [f"seconds/{phase}" for phase in PHASES]
    logged = read_scalars(folder, ["cost/evaluations", "memory/peak_gib", *tags])
    spent = logged["cost/evaluations"]
    iterations = sorted(spent)
    if not iterations:
        raise ValueError(
            f"--measured {folder}: no cost/evaluations is logged there; give the log folder of a "
            "run with callbacks.CostLogger, or --rate"
        )
    first, last = iterations[0], iterations[-1]
    start = spent[first] if len(iterations) > 1 else 0.0
    counted = iterations[1:] or iterations
    seconds = sum(logged[tag].get(iteration, 0.0) for tag in tags for iteration in counted)
    if seconds <= 0:
        raise ValueError(f"--measured {folder}: no seconds/<phase> is logged there; give --rate")
    peaks = logged["memory/peak_gib"].values()
    return MeasuredRate((spent[last] - start) / seconds, max(peaks, default=None), str(folder))
