"""PromptBatch: the prompts of one iteration, with the dataset rows they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def category_of(record: Mapping[str, Any]) -> str:
    """The field `category` of a row of a prompt file, "all" where there is none."""
    return str(record.get("category", "all"))


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts, one row each.

    Attributes:
        prompts: B texts.
        index: (B,) int64, the dataset row of each prompt. Noise is keyed by it, so a batch that
            goes into `aegpo.rollout.rollout` holds no row twice; a repeated batch may.
        metadata: B dictionaries.

    Raises:
        ValueError: If the three do not have one row per prompt each.
    """

    prompts: list[str]
    index: Tensor
    metadata: list[dict[str, Any]]

    def __post_init__(self) -> None:
        if self.index.shape != (len(self.prompts),) or len(self.metadata) != len(self.prompts):
            raise ValueError(
                f"a PromptBatch needs one row per prompt: {len(self.prompts)} prompts were given "
                f"with index of shape {tuple(self.index.shape)} and {len(self.metadata)} metadata"
            )
        if self.index.dtype != torch.int64:
            raise ValueError(f"PromptBatch.index must be int64, not {self.index.dtype}")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    @property
    def categories(self) -> list[str]:
        """The metadata field `category` of each row, "all" where there is none."""
        return [category_of(metadata) for metadata in self.metadata]

    def select(self, rows: Tensor | Sequence[int]) -> PromptBatch:
        """Picks rows, in the order given.

        Args:
            rows: Row numbers, (n,) integers.

        Returns:
            The batch of those n rows.
        """
        numbers = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        picked = torch.tensor(numbers, dtype=torch.int64, device=self.index.device)
        return PromptBatch(
            prompts=[self.prompts[row] for row in numbers],
            index=self.index[picked],
            metadata=[self.metadata[row] for row in numbers],
        )

    def repeat(self, row: Tensor) -> PromptBatch:
        """Spreads the prompts over images or transitions.

        Args:
            row: (N,) int64, the row of each image's prompt in this batch, as in
                `aegpo.rollout.RolloutTree.row`.

        Returns:
            N rows; row i holds ``prompts[row[i]]``.
        """
        return self.select(row)

    def to(self, device: torch.device | str) -> PromptBatch:
        """Moves `index` to a device; the rest is text.

        Args:
            device: Where to.

        Returns:
            The moved batch.
        """
        return PromptBatch(self.prompts, self.index.to(device), self.metadata)

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> PromptBatch:
        """Puts dataset items together; a `collate_fn` for `torch.utils.data.DataLoader`.

        Args:
            items: Mappings with ``prompt``, a text, ``index``, its dataset row, and ``metadata``, a
                dictionary, as `datamodules.PromptDataset` gives them.

        Returns:
            The batch, in the order of the items.
        """
        return PromptBatch(
            prompts=[item["prompt"] for item in items],
            index=torch.tensor([item["index"] for item in items], dtype=torch.int64, device="cpu"),
            metadata=[item["metadata"] for item in items],
        )
