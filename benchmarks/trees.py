"""A step on trees beside a step on chains, at equally many images.

    python benchmarks trees
    python benchmarks trees --quick

Iterations of the quickstart with the overlays of `PAIRS`, in turn: model evaluations of a step
(three for a sample in an update) and its seconds. Images that share their beginning share its
evaluations, and a transition that several images share is trained on once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

from machine import heading
from trainings import QUICKSTART, Measured, Recipe, measure

from aegpo.utilities.tables import markdown_table

DEPTH = (
    *("--model.init_args.pruning", "aegpo.objectives.DepthPruning"),
    *("--model.init_args.pruning.init_args.start", "12"),
)
TWENTY = ("--model.num_steps", "20")
LONG = (
    *(*TWENTY, "--model.step_selector.init_args.splits", "[0,3,6,9]"),
    *("--model.step_selector.init_args.factors", "[2,2,2,2]"),
)
MORE = ("--model.allocator.init_args.images_per_prompt", "16")
PAIRS: tuple[tuple[str, Recipe, Recipe], ...] = (
    (
        "AEGPO: noise at four steps; splits there",
        Recipe(QUICKSTART),
        Recipe(QUICKSTART, overlays=("aegpo_tree",)),
    ),
    (
        "noise at every step; splits at 0, 2, 4 of 10 (branch_grpo.yaml)",
        Recipe(QUICKSTART, overlays=("grpo",)),
        Recipe(QUICKSTART, overlays=("branch_grpo",)),
    ),
    (
        "the same, splits at 0, 3, 6, 9 of 20, 16 images (BranchGRPO's own)",
        Recipe(QUICKSTART, overlays=("grpo",), arguments=(*TWENTY, *MORE)),
        Recipe(QUICKSTART, overlays=("branch_grpo",), arguments=(*LONG, *MORE)),
    ),
    (
        "the same, steps 12 to 15 not trained on (depth pruning)",
        Recipe(QUICKSTART, overlays=("grpo",), arguments=(*TWENTY, *MORE)),
        Recipe(QUICKSTART, overlays=("branch_grpo",), arguments=(*LONG, *MORE, *DEPTH)),
    ),
)
"""What is said of it, the chains, and the trees."""
HEADER = (
    *("chains; trees", "images", "evaluations", "trees'", "ratio"),
    *("seconds", "trees'", "ratio", "rollout", "update"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks trees", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are taken")
    parser.add_argument("--images", type=int, help="about so many, of an iteration; 96 by default")
    parser.add_argument("--quick", action="store_true", help="one iteration of the first pair")
    options = parser.parse_args(arguments)
    rounds, pairs = (1, PAIRS[:1]) if options.quick else (options.rounds, PAIRS)
    images = options.images or (24 if options.quick else None)
    print(f"{heading()}\n", flush=True)
    lines = []
    for said, *both in pairs:
        chains, trees = (replace(one, images=images) for one in both)
        lines.append(row(said, chains, trees, rounds, 1 if options.quick else 3))
    print(markdown_table(HEADER, lines))


def row(said: str, chains: Recipe, trees: Recipe, rounds: int, iterations: int) -> list[str]:
    """Train both in turn, the first of several iterations to warm up; a line of the table."""
    found: list[tuple[Measured, Measured]] = []
    for _ in range(rounds):
        one, two = (measure(part, iterations, lambda row: None) for part in (chains, trees))
        found.append((one, two))
    evaluations = [one.spent()["evaluations"] for one in found[0]]
    seconds = [
        statistics.median(sum(both[side].seconds().values()) for both in found) for side in (0, 1)
    ]
    return [
        said,
        str(found[0][0].images),
        *(f"{one:,.0f}" for one in evaluations),
        f"{evaluations[1] / evaluations[0]:.2f}",
        *(f"{one:.2f}" for one in seconds),
        f"{_ratio(found):.2f}",
        *(f"{_ratio(found, phase):.2f}" for phase in ("rollout", "update")),
    ]


def _ratio(found: Sequence[tuple[Measured, Measured]], phase: str | None = None) -> float:
    """Median over the rounds of the trees' seconds over the chains', of a phase or of the step."""
    return statistics.median(_seconds(two, phase) / _seconds(one, phase) for one, two in found)


def _seconds(found: Measured, phase: str | None) -> float:
    seconds = found.seconds()
    return sum(seconds.values()) if phase is None else seconds[phase]


if __name__ == "__main__":
    main()
