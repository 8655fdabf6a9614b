"""A comparison's first stage: every method's own settings, found on seeds used nowhere else."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aegpo.study.learning_curves import Curve
from aegpo.utilities.tables import markdown_table
from lightning_modules.arguments.messages import UserError
from lightning_modules.commands.compare.run import ComparedRun, compared_config

Values = dict[str, Any]
"""Values of config keys, by their dotted names."""


@dataclass(frozen=True)
class Pilot:
    """A sweep for each method, the best of which the comparison's own seeds are run with.

    Args:
        seeds: Seeds of the sweep, none of which is a seed of the comparison.
        budget: Model evaluations of each of its runs.
        sweep: Values to try, by the dotted key of the resolved config, such as
            `model.init_args.optimizer.init_args.lr`; of several keys every combination is run.
        own: Sweeps of single methods in place of `sweep`, by name; `{}` keeps a method as it is.
        by: What decides, as a mean over the seeds: the score at the budget (`final`), or that of
            the curve from its start (`mean`).
    """

    seeds: list[int]
    budget: int
    sweep: dict[str, list[Any]]
    own: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    by: Literal["final", "mean"] = "final"

    def validate(self, methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Check what can be checked before anything starts.

        Args:
            methods: Names of the comparison's methods.
            seeds: The comparison's own seeds.

        Raises:
            UserError: If a setting cannot be.
        """
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"pilot.seeds={self.seeds} must be one or more different numbers")
        again = sorted(set(self.seeds) & set(seeds))
        if again:
            raise UserError(
                f"pilot.seeds={self.seeds} and seeds={list(seeds)} share {again}; a value that was "
                "chosen on a seed looks better there, so give the pilot seeds of its own"
            )
        if self.budget < 1:
            raise UserError(f"pilot.budget={self.budget} must be at least 1")
        unknown = [name for name in self.own if name not in methods]
        if unknown:
            raise UserError(f"pilot.own names {unknown}; the methods are {', '.join(methods)}")
        for sweep in (self.sweep, *self.own.values()):
            for key, values in sweep.items():
                if not values or any(values.count(value) > 1 for value in values):
                    raise UserError(
                        f"the pilot's {key}={values} must be one or more different values"
                    )

    def candidates(self, method: str) -> list[Values]:
        """What is tried for a method.

        Args:
            method: Its name.

        Returns:
            Every combination of the sweep's values; nothing for a method that is not swept.
        """
        sweep = self.own.get(method, self.sweep)
        if not sweep:
            return []
        return [
            dict(zip(sweep, chosen, strict=True)) for chosen in itertools.product(*sweep.values())
        ]

    def runs(
        self, configs: Mapping[str, Mapping[str, Any]], every: Mapping[str, int], out: Path
    ) -> list[ComparedRun]:
        """All runs of the sweeps, in folders `pilot/<method>@<key>=<value>/seed_<n>`.

        Args:
            configs: Resolved config of each method.
            every: `evaluate_every` of the comparison.
            out: The comparison's folder.

        Returns:
            Methods × values × seeds, a seed of everything before the next seed.

        Raises:
            UserError: If a config does not have a swept key.
        """
        return [
            ComparedRun(
                label(name, values),
                seed,
                out / "pilot" / label(name, values) / f"seed_{seed}",
                compared_config(changed(config, name, values), seed, self.budget, every),
            )
            for seed in self.seeds
            for name, config in configs.items()
            for values in self.candidates(name)
        ]

    def choose(self, methods: Sequence[str], curves: Mapping[str, Curve]) -> dict[str, Choice]:
        """Take the best values of each method.

        Args:
            methods: Names of the methods.
            curves: What was measured, by the run's name.

        Returns:
            The choice of each method that is swept.
        """
        choices = {}
        for method in methods:
            tried = [
                Tried(values, self._scores(method, values, curves))
                for values in self.candidates(method)
            ]
            if tried:
                choices[method] = Choice(tried)
        return choices

    def _scores(self, method: str, values: Values, curves: Mapping[str, Curve]) -> dict[int, float]:
        scores = {}
        for seed in self.seeds:
            curve = curves.get(f"{label(method, values)}, seed {seed}")
            if curve is None:
                scores[seed] = math.nan
            elif self.by == "mean":
                scores[seed] = curve.mean_to(self.budget)
            else:
                scores[seed] = float(curve.at(self.budget))
        return scores


@dataclass(frozen=True)
class Tried:
    """Values that were tried, and the score of each of the pilot's seeds (NaN: no finished run)."""

    values: Values
    scores: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN unless all of them were measured."""
        return float(np.mean(list(self.scores.values())))


@dataclass(frozen=True)
class Choice:
    """What a method's sweep came to.

    Args:
        tried: All that was tried, in the order of the sweep.
    """

    tried: list[Tried]

    @property
    def best(self) -> Tried | None:
        """The highest mean, the first of equal ones; None if no values have all their seeds."""
        measured = [tried for tried in self.tried if not math.isnan(tried.mean)]
        return max(measured, key=lambda tried: tried.mean, default=None)

    @property
    def at_edge(self) -> list[str]:
        """Keys whose best value is the lowest or highest of two or more numbers of their sweep."""
        best = self.best
        keys = []
        for key in best.values if best else ():
            swept = {tried.values[key] for tried in self.tried}
            numbers = all(isinstance(value, int | float) for value in swept)
            if best and numbers and len(swept) > 1 and best.values[key] in (min(swept), max(swept)):
                keys.append(key)
        return keys

    def as_json(self) -> dict[str, Any]:
        """For `table.json`; a score that is missing is None."""
        return {
            "chosen": self.best.values if self.best else None,
            "at_edge": self.at_edge,
            "tried": [
                {
                    "values": tried.values,
                    "scores": {
                        seed: None if math.isnan(score) else score
                        for seed, score in tried.scores.items()
                    },
                }
                for tried in self.tried
            ],
        }


def changed(config: Mapping[str, Any], method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set keys of a resolved config.

    Args:
        config: The config, every default written out.
        method: Whose it is, for the message.
        values: Values by dotted key.

    Returns:
        A changed copy.

    Raises:
        UserError: If the config has no such key.
    """
    result = copy.deepcopy(dict(config))
    for key, value in values.items():
        inside: Any = result
        *path, last = key.split(".")
        for part in path:
            inside = inside.get(part) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or last not in inside:
            raise UserError(
                f"method {method!r} has no {key} to sweep; name a key of its resolved config "
                "(`aegpo fit --config … --print_config`), or leave the method out: "
                f"`pilot: {{own: {{{method}: {{}}}}}}`"
            )
        inside[last] = value
    return result


def label(method: str, values: Mapping[str, Any]) -> str:
    """Name of a method with values, which is also its folder's.

    Args:
        method: The method.
        values: Values by dotted key.

    Returns:
        Such as `grpo@lr=0.0003`.
    """
    said = (f"{key.rsplit('.', 1)[-1]}={value}" for key, value in values.items())
    return f"{method}@{','.join(said)}".replace("/", "_")


def chosen_values(choices: Mapping[str, Choice], by: str) -> str:
    """Lay the choices out for a reader.

    Args:
        choices: What was chosen for each method that is swept.
        by: What decided.

    Returns:
        A heading sentence, a Markdown table, and what lies at the edge of its sweep.
    """
    rows = []
    for method, choice in choices.items():
        best = choice.best
        rows += [
            [
                method,
                label("", tried.values)[1:],
                "–" if math.isnan(tried.mean) else f"{tried.mean:.4f}",
                ", ".join("–" if math.isnan(s) else f"{s:.4f}" for s in tried.scores.values()),
                "chosen" if tried is best else "",
            ]
            for tried in choice.tried
        ]
    seeds = next(iter(choices.values())).tried[0].scores
    lines = [
        f"Chosen on the pilot's seeds {', '.join(map(str, seeds))}, which nothing "
        f"above was run with, by the {by} score:",
        "",
        markdown_table(["method", "values", "mean", "by seed", ""], rows),
    ]
    edges = [
        f"{method} ({', '.join(key.rsplit('.', 1)[-1] for key in found.at_edge)})"
        for method, found in choices.items()
        if found.at_edge
    ]
    if edges:
        lines += [
            "",
            f"At the edge of what was tried, so a wider sweep may do better: {'; '.join(edges)}.",
        ]
    return "\n".join(lines)
