"""What a denoiser is told about the text, one row per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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


def real_tokens(tokenizer: Any, texts: list[str], length: int, device: torch.device) -> Tensor:
    """Says which positions hold text, for `Conditioning.mask`.

    Args:
        tokenizer: A tokenizer of transformers.
        texts: B texts.
        length: Positions S to which a text is padded or cut.
        device: Of the mask.

    Returns:
        True at text, start and end tokens, shape (B, S) bool.
    """
    tokens = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    mask: Tensor = tokens.attention_mask.to(device).bool()
    return mask
