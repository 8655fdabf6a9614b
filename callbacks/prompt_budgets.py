"""What each prompt was drawn for so far: visits, images, and the ΔEntropy of its latest visit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aegpo.prompts import PromptBatch
from aegpo.prompts.known_texts import KnownTexts

HEADER = ("prompt", "latest ΔEntropy", "visits", "images a visit")
MOST_PROMPTS = 40
"""Rows of a table: half of them with the highest ΔEntropy, half with the lowest."""


@dataclass
class Budget:
    """Of one prompt.

    Attributes:
        visits: Iterations that drew it.
        images: Its images in all.
        delta: ΔEntropy as it was read at the latest visit that had one, NaN before.
    """

    visits: int = 0
    images: int = 0
    delta: float = math.nan


class PromptBudgets:
    """Keeps a `Budget` for every prompt that was visited, also over resumed runs."""

    def __init__(self) -> None:
        self.of_row: dict[int, Budget] = {}
        self._texts = KnownTexts()

    def add(self, batch: PromptBatch, images: Mapping[int, int], delta: Tensor | None) -> None:
        """Enter an iteration.

        Args:
            batch: The prompts of all ranks, B.
            images: Images of each by dataset row, over all ranks.
            delta: Their ΔEntropy, shape (B,); None where none was read.
        """
        for row in self._texts.replaced(batch):
            self.of_row.pop(row, None)
        read = [math.nan] * len(batch) if delta is None else delta.tolist()
        for row, value in zip(batch.index.tolist(), read, strict=True):
            budget = self.of_row.setdefault(row, Budget())
            budget.visits += 1
            budget.images += images[row]
            budget.delta = value if math.isfinite(value) else budget.delta

    def says_something(self) -> bool:
        """Whether prompts differ in anything but how often they were drawn."""
        entries = self.of_row.values()
        sizes = {one.images / one.visits for one in entries}
        return len(sizes) > 1 or any(math.isfinite(one.delta) for one in entries)

    def table(self, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
        """Write the table, highest ΔEntropy first; its columns are `HEADER`.

        Args:
            records: The training prompts, by dataset row.

        Returns:
            At most `MOST_PROMPTS` rows: of more prompts, those with the highest and the lowest.
        """
        return [
            (
                str(records[row]["prompt"]) if row < len(records) else f"row {row}",
                f"{budget.delta:.5f}" if math.isfinite(budget.delta) else "",
                f"{budget.visits}",
                f"{budget.images / budget.visits:.1f}",
            )
            for row, budget in extremes(self.of_row)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, as plain tensors."""
        entries = [
            (row, one.visits, one.images, one.delta) for row, one in sorted(self.of_row.items())
        ]
        table = torch.tensor(entries, dtype=torch.float64, device="cpu").reshape(-1, 4)
        return {"budgets": table, "texts": self._texts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.of_row = {
            int(row): Budget(int(visits), int(images), delta)
            for row, visits, images, delta in state["budgets"].tolist()
        }
        self._texts.load_state_dict(state["texts"])


def extremes(of_row: Mapping[int, Budget]) -> list[tuple[int, Budget]]:
    """The prompts with the highest and the lowest ΔEntropy, in that order; then those without."""
    read = sorted(
        (entry for entry in of_row.items() if math.isfinite(entry[1].delta)),
        key=lambda entry: (-entry[1].delta, entry[0]),
    )
    if len(read) > MOST_PROMPTS:
        return read[: MOST_PROMPTS // 2] + read[-(MOST_PROMPTS // 2) :]
    unread = [(row, of_row[row]) for row in sorted(of_row) if not math.isfinite(of_row[row].delta)]
    return read + unread[: MOST_PROMPTS - len(read)]
