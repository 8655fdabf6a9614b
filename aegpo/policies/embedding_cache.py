"""Embeddings of prompts, kept in memory and on disk: a text is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aegpo.policies.conditioning import Conditioning
from aegpo.tensor_folder import TensorFolder

NEGATIVE = "\0negative"
"""Stands in a cache for the row that guidance subtracts, which no prompt can spell."""


class EmbeddingFolder(TensorFolder):
    """Rows of conditioning as files, one per text; a row that cannot be read is encoded again.

    Args:
        folder: Created if absent.
        settings: Everything that a row depends on beside its text.

    Raises:
        OSError: If the folder cannot be created.
    """

    def __init__(self, folder: str | Path, settings: Sequence[object]) -> None:
        super().__init__(folder, settings, "encoding again")

    def load(self, text: str) -> Conditioning | None:
        """The row of a text, or None if there is no readable file of it."""
        parts = self.load_tensors(text, "embeds")
        if parts is None:
            return None
        return Conditioning(parts["embeds"], parts.get("pooled"), parts.get("mask"))

    def save(self, text: str, row: Conditioning) -> None:
        """Writes one row; a full disk costs a warning, not the run."""
        parts = {"embeds": row.embeds, "pooled": row.pooled, "mask": row.mask}
        self.save_tensors(text, {name: part for name, part in parts.items() if part is not None})


class ConditioningCache:
    """Rows of conditioning by text, on the CPU; the oldest give way when it is full.

    Args:
        max_texts: Texts that are kept, at least 1. A text of SD3.5 with T5 takes about 5 MB.
        folder: Where rows outlive the process, or None to keep them in memory only.

    Raises:
        ValueError: If `max_texts` is below 1.
    """

    def __init__(self, max_texts: int, folder: EmbeddingFolder | None = None) -> None:
        if max_texts < 1:
            raise ValueError(f"max_texts={max_texts}, but a cache must hold at least 1 text")
        self.max_texts = max_texts
        self.folder = folder
        self._rows: dict[str, Conditioning] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, texts: Sequence[str]) -> bool:
        """Whether `get` would find all texts and encode none."""
        for text in texts:
            if text not in self._rows and self.folder is not None:
                row = self.folder.load(text)
                if row is not None:
                    self._rows[text] = row
        return all(text in self._rows for text in texts)

    def get(
        self, texts: Sequence[str], encode: Callable[[list[str]], Conditioning]
    ) -> Conditioning:
        """The rows of the texts; `encode` is called for each unknown one, by itself.

        A row's last bits depend on the batch that it is encoded in, and a resumed run meets the
        texts in other batches: one at a time, a row depends on its text alone.

        Args:
            texts: B texts, repeats allowed.
            encode: Turns texts into one row each, without `negative`.

        Returns:
            B rows on the CPU.
        """
        for text in dict.fromkeys(texts):
            if not self.has([text]):
                self._rows[text] = encode([text]).to("cpu")
                if self.folder is not None:
                    self.folder.save(text, self._rows[text])
        rows = Conditioning.cat([self._rows[text] for text in texts])
        for text in list(self._rows)[: max(0, len(self._rows) - self.max_texts)]:
            del self._rows[text]
        return rows
