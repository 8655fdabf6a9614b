"""Sets methods of the second study against those of the first, from the curves beside this file.

    python docs/results/across_studies.py

Evaluations to Flow-GRPO's final score (300,000) and scores after 100,000, with the statistics of
`aegpo compare`: medians over seeds, 95 % bootstrap intervals over pairs of the same seed.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from aegpo.study.comparison import Target, difference, evaluations_ratio
from aegpo.study.learning_curves import Curve

FOLDER = Path(__file__).parent
METHODS = ("aegpo", "window_0_3", "diffusion_nft", "aegpo_nft")
LONG, SHORT = 300_000, 100_000


def read(score: str) -> dict[str, dict[int, Curve]]:
    """Curves of all methods by seed; the first study's where both have a method."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for study in ("study_signals", "study"):
        found: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(dict)
        with (FOLDER / f"{study}_{score}.csv").open() as file:
            for row in csv.DictReader(file):
                runs = found[row["method"]]
                point = (float(row["evaluations"]), float(row["score"]))
                runs.setdefault(int(row["seed"]), []).append(point)
        points |= found
    return {
        method: {seed: Curve(*np.array(run).T) for seed, run in runs.items()}
        for method, runs in points.items()
    }


def number(value: float, form: str) -> str:
    """A number, or that it was not reached."""
    return format(value, form) if np.isfinite(value) else "not reached"


def main() -> None:
    """Print one table for each score."""
    for score, form in (("judge", "+.3f"), ("match", "+.4f")):
        runs = read(score)
        flow = runs["flow_grpo"]
        target = Target(SHORT, reference_budget=LONG)
        aim = target.of(flow, sorted(flow))
        print(f"\n{score}, Flow-GRPO after {LONG:,}: {aim:.4f}\n")
        print("| method | evaluations to it | reached by | ratio | after 100,000 | against AEGPO |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for method in METHODS:
            own = runs[method]
            needed = [curve.evaluations_to(aim, SHORT) for curve in own.values()]
            ratio = evaluations_ratio(own, flow, target)
            gain = difference(own, runs["aegpo"], lambda curve: float(curve.at(SHORT)))
            final = np.median([float(curve.at(SHORT)) for curve in own.values()])
            print(
                f"| `{method}` | {number(float(np.median(needed)), ',.0f')} "
                f"| {np.isfinite(needed).sum()} of {len(own)} "
                f"| {number(ratio.value, '.3f')} "
                f"[{number(ratio.low, '.3f')}, {number(ratio.high, '.3f')}] | {final:.4f} "
                f"| {gain.value:{form}} [{gain.low:{form}}, {gain.high:{form}}] |"
            )


if __name__ == "__main__":
    main()
