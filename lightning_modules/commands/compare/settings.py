"""What ``aegpo compare`` reads: methods, seeds, budget, and where the files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse.typing import register_type

from lightning_modules.arguments.messages import UserError
from lightning_modules.arguments.shipped import shipped_config
from lightning_modules.commands.compare.pilot import Pilot, Values, changed
from lightning_modules.commands.compare.run import ComparedRun, compared_config

MOST_CURVES = 6
"""Curves in one figure that a reader can tell apart."""


class Overlays(list[Any]):
    """Overlays of a method: config files, or overrides written out as nested keys.

    A type of its own, because the parser would import the classes that overrides in a plain list
    name, and fill in their defaults.
    """

    def check(self, method: str) -> None:
        """Raise unless every entry is a file or a mapping.

        Args:
            method: Name of the method, for the message.

        Raises:
            UserError: If an entry is something else.
        """
        for entry in self:
            if not isinstance(entry, str | dict):
                raise UserError(
                    f"method {method!r} lists {entry!r}; an entry is a config file or nested keys"
                )


register_type(Overlays, deserializer=Overlays)


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Paths of configs are relative to the comparison's own file; those that come with the package are
    found by their names, too, such as `overlays/grpo`.

    Args:
        methods: For each method the overlays on `base` in their order: config files, or overrides
            written out as nested keys.
        base: Config file that all methods share, or several that merge.
        budget: Model evaluations of every run, as `cost/evaluations` counts them; final scores are
            compared there.
        metric: Logged score that is compared, higher is better.
        reference: Method that the others are set against; its final score is the target.
        budgets: Larger budgets of single methods, by name. The reference's is where the target is
            read: give a slow reference more, and its price is not cut off.
        seeds: Seeds; every method is run with each.
        target: Score whose price is compared, instead of the reference's final one.
        evaluate_every: `evaluations: n` or `epochs: n` between two held-out evaluations.
        jobs: Runs side by side; with more than one each gets a single thread.
        out: Folder of the runs and of the table, relative to the current folder.
        report_only: Start nothing; write the table of the runs that are finished. It may be asked
            while the comparison is running.
        passage: When the target counts as reached: at the "first" passage of the curve, or when it
            stays there up to the run's budget ("lasting").
        band: What the figure shades around the median: all seeds, or their middle half.
        curves: Methods whose curves are drawn, at most `MOST_CURVES`; None for the reference and
            the methods with the best final scores. All methods stand in the table and in
            `differences.png`.
        pilot: A sweep that comes first, on seeds and a budget of its own, and gives every method
            the values that were best there; None to run the methods as they are.
    """

    methods: dict[str, Overlays]
    base: str | list[str]
    budget: int
    metric: str
    reference: str
    budgets: dict[str, int] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    target: float | None = None
    evaluate_every: dict[str, int] = field(default_factory=lambda: {"epochs": 1})
    jobs: int = 1
    out: str = "runs/compare"
    report_only: bool = False
    passage: Literal["first", "lasting"] = "first"
    band: Literal["range", "quartiles"] = "range"
    curves: list[str] | None = None
    pilot: Pilot | None = None

    def __post_init__(self) -> None:
        """Build the pilot where a file gave it as plain keys."""
        given: Any = self.pilot
        if isinstance(given, dict):
            object.__setattr__(self, "pilot", Pilot(**given))

    def validate(self) -> None:
        """Check what can be checked before anything starts.

        Raises:
            UserError: If a setting cannot be.
        """
        if self.reference not in self.methods:
            raise UserError(
                f"reference={self.reference!r} is none of the methods {', '.join(self.methods)}"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds={self.seeds} must be one or more different numbers")
        if self.budget < 1 or self.jobs < 1:
            raise UserError(f"budget={self.budget} and jobs={self.jobs} must be at least 1")
        for name, budget in self.budgets.items():
            if name not in self.methods or budget < self.budget:
                raise UserError(
                    f"budgets names {name!r} with {budget}; a name must be one of "
                    f"{', '.join(self.methods)} and its budget at least budget={self.budget}"
                )
        self._validate_curves()
        if self.pilot is not None:
            self.pilot.validate(list(self.methods), self.seeds)
        every = self.evaluate_every
        if (
            len(every) != 1
            or not set(every) <= {"evaluations", "epochs"}
            or min(every.values()) < 1
        ):
            raise UserError(
                f"evaluate_every={every} must be `evaluations: n` or `epochs: n` with n above 0"
            )
        for name in self.methods:
            if (
                not name
                or name.startswith(".")
                or not name.isprintable()
                or any(character in name for character in "/\\")
                or name in ("superseded", "overrides", "pilot")
            ):
                raise UserError(f"the method's name {name!r} cannot be a folder; choose another")

    def _validate_curves(self) -> None:
        if self.curves is None:
            return
        unknown = [name for name in self.curves if name not in self.methods]
        if unknown or not 1 <= len(self.curves) <= MOST_CURVES:
            raise UserError(
                f"curves={self.curves} must name one to {MOST_CURVES} of the methods "
                f"{', '.join(self.methods)}; all of them stand in differences.png"
            )

    def budget_of(self, method: str) -> int:
        """Model evaluations of a method's runs.

        Args:
            method: Its name.

        Returns:
            Its own budget, or that of all methods.
        """
        return self.budgets.get(method, self.budget)

    def arguments(self, folder: Path) -> dict[str, list[str]]:
        """Write overrides into files and return the `--config` arguments of each method.

        Args:
            folder: Folder that relative paths start from.

        Returns:
            Arguments of `fit` by method.

        Raises:
            UserError: If a config file does not exist.
        """
        bases = [self.base] if isinstance(self.base, str) else self.base
        arguments = {}
        for name, overlays in self.methods.items():
            Overlays(overlays).check(name)
            files = [_file(folder, base) for base in bases]
            for number, overlay in enumerate(overlays):
                if isinstance(overlay, str):
                    files.append(_file(folder, overlay))
                    continue
                written = Path(self.out) / "overrides" / f"{name}-{number}.yaml"
                written.parent.mkdir(parents=True, exist_ok=True)
                written.write_text(yaml.safe_dump(overlay, sort_keys=False))
                files.append(written)
            for file in files:
                if not file.is_file():
                    raise UserError(f"method {name!r} names {file}, which does not exist")
            arguments[name] = [word for file in files for word in ("--config", str(file))]
        return arguments

    def runs(
        self, configs: dict[str, dict[str, Any]], chosen: dict[str, Values]
    ) -> list[ComparedRun]:
        """All runs, a seed of every method before the next seed.

        Args:
            configs: Resolved config of each method that is run.
            chosen: What the pilot chose, by method.

        Returns:
            Methods × seeds.
        """
        final = {name: changed(configs[name], name, chosen.get(name, {})) for name in configs}
        return [
            ComparedRun(
                name,
                seed,
                Path(self.out) / name / f"seed_{seed}",
                compared_config(final[name], seed, self.budget_of(name), self.evaluate_every),
            )
            for seed in self.seeds
            for name in final
        ]


def _file(folder: Path, name: str) -> Path:
    """A config beside the comparison, or one of the package."""
    beside = folder / name
    return beside if beside.is_file() else folder / shipped_config(name)
