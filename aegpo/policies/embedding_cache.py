"""Embeddings of prompts, kept in memory and on disk: a text is encoded once."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aegpo.policies.conditioning import Conditioning
from aegpo.utilities.files import replacing

NEGATIVE = "\0negative"
"""Stands in a cache for the row that guidance subtracts, which no prompt can spell."""


class EmbeddingFolder:
    """Rows of conditioning as files, one per text; several processes may share a folder.

    A file's name is a hash of the text and of `settings`, so that rows of another model or of
    another text length are never found. A file that cannot be read is encoded again.

    Args:
        folder: Created if absent.
        settings: Everything that a row depends on beside its text.

    Raises:
        OSError: If the folder cannot be created.
    """

    def __init__(self, folder: str | Path, settings: Sequence[object]) -> None:
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = json.dumps([str(setting) for setting in settings])

    def load(self, text: str) -> Conditioning | None:
        """The row of a text, or None if there is no readable file of it."""
        path = self._path(text)
        if not path.is_file():
            return None
        try:
            parts = load_file(path)
            return Conditioning(parts["embeds"], parts.get("pooled"), parts.get("mask"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"{path} is unreadable ({error}); encoding again", stacklevel=2)
            return None

    def save(self, text: str, row: Conditioning) -> None:
        """Writes one row; a full disk costs a warning, not the run."""
        parts = {"embeds": row.embeds, "pooled": row.pooled, "mask": row.mask}
        present = {name: part.contiguous() for name, part in parts.items() if part is not None}
        path = self._path(text)
        try:
            with replacing(path) as partial:  # another process never reads half a file
                save_file(present, partial)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"{path} could not be written ({error})", stacklevel=2)

    def _path(self, text: str) -> Path:
        name = hashlib.blake2b(f"{self.settings}{text}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.safetensors"


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
