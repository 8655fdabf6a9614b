"""What a run decided in an iteration and what it knew then, as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import ExplorationSchedule


@dataclass(frozen=True, eq=False)
class Decision:
    """The decisions of one iteration, over all ranks.

    Args:
        iteration: Training iteration, from 0.
        seed: The run's seed, which keys the draws of selectors that draw lots.
        index: Dataset row of each prompt, int64, shape (B,).
        num_steps: T, the number of denoising steps.
        entropy: Reading that the decisions were made from; None where there was none.
        group_sizes: Images that each prompt got, int64, shape (B,).
        stochastic: Steps that explored, bool, shape (B, T).
        branching: Children of every node at each step, int64, shape (B, T).
        probabilities: Chance of each prompt inside its stratum when it was drawn, float64, shape
            (B,); None where the sampler has none.
        kept: For each prompt the numbers of the images that were trained on; None where all were.
        measured: What the step selector had measured until then, as in its state; None for one
            that measures nothing.
    """

    iteration: int
    seed: int
    index: Tensor
    num_steps: int
    entropy: EntropyReading | None
    group_sizes: Tensor
    stochastic: Tensor
    branching: Tensor
    probabilities: Tensor | None = None
    kept: list[list[int]] | None = None
    measured: dict[str, list[float]] | None = None

    def to_json(self) -> str:
        """Write the decision on one line; nine digits give every fp32 value back exactly."""
        curve = delta = None
        if self.entropy is not None:
            curve = [_digits(row) for row in self.entropy.curve]
            delta = None if self.entropy.delta is None else _digits(self.entropy.delta)
        record = {
            "iteration": self.iteration,
            "seed": self.seed,
            "index": self.index.tolist(),
            "num_steps": self.num_steps,
            "group_sizes": self.group_sizes.tolist(),
            "steps": [row.nonzero().flatten().tolist() for row in self.stochastic],
            "branching": [
                row[mask].tolist()
                for row, mask in zip(self.branching, self.stochastic, strict=True)
            ],
            "delta_entropy": delta,
            "entropy": curve,
            "probabilities": None if self.probabilities is None else _digits(self.probabilities),
            "kept": self.kept,
            "measured": self.measured,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, line: str) -> Decision:
        """Read what `to_json` wrote.

        Args:
            line: One line of the log.

        Returns:
            The decision.

        Raises:
            ValueError: If the line is not a whole decision.
        """
        try:
            record = json.loads(line)
            shape = len(record["index"]), record["num_steps"]
            stochastic = torch.zeros(shape, dtype=torch.bool, device="cpu")
            branching = torch.ones(shape, dtype=torch.int64, device="cpu")
            for row, steps in enumerate(record["steps"]):
                stochastic[row, steps] = True
                branching[row, steps] = torch.tensor(
                    record["branching"][row], dtype=torch.int64, device="cpu"
                )
            curve, delta = record["entropy"], record["delta_entropy"]
            probabilities = record["probabilities"]
            return cls(
                iteration=record["iteration"],
                seed=record["seed"],
                index=torch.tensor(record["index"], dtype=torch.int64, device="cpu"),
                num_steps=record["num_steps"],
                entropy=None
                if curve is None
                else EntropyReading(
                    torch.tensor(curve, device="cpu"),
                    None if delta is None else torch.tensor(delta, device="cpu"),
                ),
                group_sizes=torch.tensor(record["group_sizes"], dtype=torch.int64, device="cpu"),
                stochastic=stochastic,
                branching=branching,
                probabilities=None
                if probabilities is None
                else torch.tensor(probabilities, dtype=torch.float64, device="cpu"),
                kept=record.get("kept"),
                measured=record.get("measured"),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"not a line of a decision log ({error!r}): {line[:60]}") from error

    def selector_state(self) -> dict[str, Tensor]:
        """What the step selector had measured, as it takes it up again; empty if nothing."""
        return {
            name: torch.tensor(values, dtype=torch.float64, device="cpu")
            for name, values in (self.measured or {}).items()
        }

    def same_schedule(self, schedule: ExplorationSchedule) -> Tensor:
        """Which prompts a schedule treats just like this decision, bool, shape (B,)."""
        same = (schedule.stochastic == self.stochastic) & (schedule.branching == self.branching)
        return same.all(dim=1)


def read_decisions(path: str | Path) -> list[Decision]:
    """Read a decision log.

    Args:
        path: The file that `callbacks.DecisionLog` wrote.

    Returns:
        Its decisions in order. A last line that an interruption cut short is left out.

    Raises:
        ValueError: If another line is not a decision.
    """
    lines = Path(path).read_text().split("\n")
    return [Decision.from_json(line) for line in lines[:-1]]  # a whole line ends with a newline


def _digits(values: Tensor) -> list[float]:
    return [float(f"{value:.9g}") for value in values.tolist()]
