"""Prompts from a text, JSON Lines or CSV file, or from a bundled set."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import Dataset

from aegpo.prompts.files import read_prompts


class PromptDataset(Dataset[dict[str, Any]]):
    """Prompts with what the rewards may want to know about each.

    Args:
        source: A `.txt` file (one prompt a line), a `.jsonl` or `.csv` file, or a split of a
            bundled set: `shapes:train`, `geneval:heldout`, ... (`aegpo.prompts.sets`).
        column: Name of the field that holds the prompt, in `.jsonl` and `.csv` files.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file holds no prompt, has no such column or an unknown ending, or there
            is no such bundled split.
    """

    def __init__(self, source: str, column: str = "prompt") -> None:
        self.source = source
        self.records = read_prompts(source, column)

    def of(self, records: list[dict[str, Any]]) -> PromptDataset:
        """Return some of the prompts as a dataset of their own, numbered anew."""
        part = copy.copy(self)
        part.records = records
        return part

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `prompt`, `index` (this row) and `metadata` (every other field)."""
        record = self.records[index]
        metadata = {key: value for key, value in record.items() if key != "prompt"}
        return {"prompt": record["prompt"], "index": index, "metadata": metadata}
