"""Print how rules for noise levels did in six settings, from the curves of `aegpo compare`.

python docs/results/settings_trained.py [CURVES_CSV]

Final scores of each setting, and entropy's difference to each other rule over pairs of the same
setting and seed, with a bootstrap interval over these pairs.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aegpo.study.comparison import bootstrap

RULE = "entropy"


def read(path: Path) -> dict[str, dict[str, dict[int, float]]]:
    """The last score of every run, by setting, rule and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            steps, shift, rule = row["method"].split("_", 2)
            scores = found.setdefault(f"{steps}, {shift}", {}).setdefault(rule, {})
            scores[int(row["seed"])] = float(row["score"])
    return found


def compared(name: str, pairs: list[tuple[float, float]]) -> None:
    """Print the mean difference of some pairs of scores, and its interval."""
    differences = [own - other for own, other in pairs]

    def mean(own: Sequence[int], other: Sequence[int]) -> float:
        del other
        return float(np.mean([differences[place] for place in own]))

    places = range(len(pairs))
    result = bootstrap(mean, places, places)
    # Of one pair there is no interval.
    interval = f"[{result.low:+.4f}, {result.high:+.4f}]" if len(pairs) > 1 else ""
    ahead = sum(difference > 0 for difference in differences)
    print(f"{name:<26} {result.value:+.4f} {interval:<18}  ahead in {ahead} of {len(pairs)}")


def main() -> None:
    """One line a setting, then entropy's differences over all and in each."""
    default = Path(__file__).parent / "settings_trained.csv"
    settings = read(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
    rules = list(next(iter(settings.values())))
    print(f"{'final score':<16}" + "".join(f"{rule:>28}" for rule in rules))
    for setting, scores in settings.items():
        cells = []
        for rule in rules:
            own = [score for _, score in sorted(scores.get(rule, {}).items())]
            seeds = " ".join(f"{score:.3f}" for score in own)
            cells.append(f"{np.mean(own):.3f} ({seeds})" if own else "not run")
        print(f"{setting:<16}" + "".join(f"{cell:>28}" for cell in cells))
    others = [rule for rule in rules if rule != RULE]
    for other in others:
        print()
        pooled = []
        for setting, scores in settings.items():
            if other not in scores:
                continue
            shared = sorted(scores[RULE].keys() & scores[other].keys())
            pairs = [(scores[RULE][seed], scores[other][seed]) for seed in shared]
            compared(f"{other}: {setting}", pairs)
            pooled += pairs
        compared(f"{other}: all settings", pooled)
    best = []
    for scores in settings.values():
        if len(scores) < len(rules):
            continue
        means = {rule: np.mean(list(scores[rule].values())) for rule in others}
        strongest = max(others, key=means.__getitem__)
        best += [(scores[RULE][seed], scores[strongest][seed]) for seed in sorted(scores[RULE])]
    print()
    compared("the best in each setting", best)


if __name__ == "__main__":
    main()
