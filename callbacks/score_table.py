"""ScoreTable: the held-out scores, printed as a table."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from aegpo.training import Training
from aegpo.utilities.names import tag_name


class ScoreTable(L.Callback):
    """Prints the held-out scores after every evaluation, with their change since the first one.

    Below the table stands the best score so far of each reward and its iteration.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.best: dict[str, tuple[float, int]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Print the table on rank zero."""
        metrics = pl_module.held_out.metrics("val")
        if trainer.state.fn == TrainerFn.FITTING:
            self._note(metrics, pl_module.iteration)
        self._print(trainer, metrics, pl_module.iteration)

    def _note(self, metrics: dict[str, float], iteration: int) -> None:
        for key, value in metrics.items():
            better = value > self.best.get(key, (-float("inf"), 0))[0]  # never where one is NaN
            if key.count("/") == 1 and better:
                self.best[key] = (value, iteration)

    def on_test_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Print the table on rank zero."""
        self._print(trainer, pl_module.held_out.metrics("test"), pl_module.iteration)

    def _print(self, trainer: L.Trainer, metrics: dict[str, float], iteration: int) -> None:
        if not metrics:
            return
        self.first = self.first or metrics
        if not trainer.is_global_zero:
            return
        parts = [key.split("/") for key in metrics]  # names have no slash in a tag
        rewards = [part[1] for part in parts if len(part) == 2]
        categories = sorted({part[2] for part in parts if len(part) == 3})
        stage = next(iter(metrics)).split("/")[0]
        table = Table(title=f"held-out scores ({stage}) after {iteration} iterations")
        if len({when for _, when in self.best.values()} | {iteration}) > 1:
            table.caption = "best: " + ", ".join(
                f"{tag_name(key.split('/')[1])} {value:.3f} after {when}"
                for key, (value, when) in self.best.items()
            )
        for column in ("reward", "all", *categories):
            name = column == "reward"
            table.add_column(tag_name(column), justify="left" if name else "right", no_wrap=name)
        for reward in rewards:
            keys = [f"{stage}/{reward}", *(f"{stage}/{reward}/{name}" for name in categories)]
            table.add_row(tag_name(reward), *(self._cell(metrics, key) for key in keys))
        Console(markup=False).print(table)

    def _cell(self, metrics: dict[str, float], key: str) -> str:
        value, change = metrics[key], metrics[key] - self.first.get(key, metrics[key])
        return f"{value:.3f}" + (f" ({change:+.3f})" if self.first is not metrics else "")

    def state_dict(self) -> dict[str, Any]:
        """Return the first and the best scores, so that a resumed run reports the same."""
        return {"first": self.first, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.first = state_dict["first"]
        self.best = dict(state_dict.get("best", {}))
