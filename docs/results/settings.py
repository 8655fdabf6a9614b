"""Print what rules for steps are worth in six settings, from the signals of the untrained base.

python docs/results/settings.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def main() -> None:
    """A line for each setting: steps, share of the variance, and worth over the best window's."""
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    with (Path(__file__).parent / "settings_signals.csv").open() as file:
        for row in csv.DictReader(file):
            setting = int(row["steps"]), int(row["shift"])
            rows[setting].append((float(row["variance_share"]), float(row["entropy"])))
    for (steps, shift), found in rows.items():
        shares = [share for share, _ in found]
        entropy = [value for _, value in found]
        places = range(len(shares))
        middle = (min(entropy) + max(entropy)) / 2
        windows = [range(first, end) for first in places for end in range(first + 1, steps)]
        ordered = sorted(places, key=lambda place: -shares[place])
        oracle = [ordered[:size] for size in range(1, steps)]

        def worth(rule: Iterable[int], shares: list[float] = shares, steps: int = steps) -> float:
            chosen = list(rule)
            return sum(shares[place] for place in chosen) / (steps + 3 * len(chosen))

        rules: dict[str, Iterable[int]] = {
            "best window": max(windows, key=worth),
            "0-3": range(4),
            "first .4 T": range(round(0.4 * steps)),
            "first .6 T": range(round(0.6 * steps)),
            "all": places,
            "entropy": [place for place in places if entropy[place] > middle],
            "oracle": max(oracle, key=worth),
        }
        best = worth(rules["best window"])
        print(f"T = {steps}, shift {shift}")
        for name, rule in rules.items():
            chosen = sorted(rule)
            share = sum(shares[place] for place in chosen)
            print(f"  {name:<12} {worth(chosen) / best:.2f}  holds {share:.2f}  {chosen}")


if __name__ == "__main__":
    main()
