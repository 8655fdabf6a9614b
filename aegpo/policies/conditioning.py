"""What a denoiser is told about the text, one row per prompt, and a cache of such rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEGATIVE = "\0negative"
"""Stands in a cache for the row that guidance subtracts, which no prompt can spell."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: everything that a denoiser needs to know about the text.

    Args:
        embeds: Token embeddings, shape (B, S, D), in the text encoders' dtype.
        pooled: Embedding of the whole text, shape (B, P), or None for models without one.
        mask: Real text tokens, shape (B, S) bool: False for padding and for zeros that stand in
            for an absent encoder. None if all are real. Denoisers may attend to what is masked;
            the mask tells the attention entropy which tokens are text.
        negative: The unconditional rows that guidance subtracts, one per prompt, or None.

    Raises:
        ValueError: If the parts disagree in their number of rows or tokens.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    negative: Conditioning | None = None

    def __post_init__(self) -> None:
        rows, tokens = self.embeds.shape[:2]
        if self.pooled is not None and len(self.pooled) != rows:
            raise ValueError(f"embeds have {rows} rows, but pooled has {len(self.pooled)}")
        if self.mask is not None and self.mask.shape != (rows, tokens):
            raise ValueError(
                f"mask has shape {tuple(self.mask.shape)}, but embeds have {rows} rows of "
                f"{tokens} tokens"
            )
        if self.negative is not None and len(self.negative) != rows:
            raise ValueError(f"embeds have {rows} rows, but negative has {len(self.negative)}")

    def __len__(self) -> int:
        return len(self.embeds)

    def select(self, rows: Tensor | slice) -> Conditioning:
        """The rows with the given indices.

        Args:
            rows: Row indices, shape (n,) int64 and repeats allowed, or a slice.

        Returns:
            n rows, in the order of `rows`.
        """
        if isinstance(rows, Tensor):
            rows = rows.to(self.embeds.device)
        return Conditioning(
            embeds=self.embeds[rows],
            pooled=None if self.pooled is None else self.pooled[rows],
            mask=None if self.mask is None else self.mask[rows],
            negative=None if self.negative is None else self.negative.select(rows),
        )

    def to(self, device: torch.device | str) -> Conditioning:
        """The same rows on another device."""
        return Conditioning(
            embeds=self.embeds.to(device),
            pooled=None if self.pooled is None else self.pooled.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            negative=None if self.negative is None else self.negative.to(device),
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Stacks the rows of several conditionings, in their order.

        Args:
            parts: At least one conditioning; all have the same optional parts.

        Returns:
            As many rows as the parts have together.
        """
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [part.mask for part in parts if part.mask is not None]
        negatives = [part.negative for part in parts if part.negative is not None]
        for name, present in (("pooled", pooled), ("mask", masks), ("negative", negatives)):
            if len(present) not in (0, len(parts)):
                raise ValueError(f"only {len(present)} of {len(parts)} conditionings have {name}")
        return Conditioning(
            embeds=torch.cat([part.embeds for part in parts]),
            pooled=torch.cat(pooled) if pooled else None,
            mask=torch.cat(masks) if masks else None,
            negative=Conditioning.cat(negatives) if negatives else None,
        )


class ConditioningCache:
    """Rows of conditioning by text, on the CPU; the oldest give way when it is full.

    Args:
        max_texts: Texts that are kept, at least 1. A text of SD3.5 with T5 takes about 5 MB.

    Raises:
        ValueError: If `max_texts` is below 1.
    """

    def __init__(self, max_texts: int) -> None:
        if max_texts < 1:
            raise ValueError(f"max_texts={max_texts}, but a cache must hold at least 1 text")
        self.max_texts = max_texts
        self._rows: dict[str, Conditioning] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, texts: Sequence[str]) -> bool:
        """Whether `get` would find all texts and encode none."""
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
            if text not in self._rows:
                self._rows[text] = encode([text]).to("cpu")
        rows = Conditioning.cat([self._rows[text] for text in texts])
        for text in list(self._rows)[: max(0, len(self._rows) - self.max_texts)]:
            del self._rows[text]
        return rows
