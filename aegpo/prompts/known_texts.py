"""Which text stood at which index, so that what was read of a prompt goes to no other one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from aegpo.prompts.batch import PromptBatch


def fingerprint(prompt: str) -> int:
    """A number of 63 bits that only this text has, the same on every machine."""
    digest = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fingerprints(prompts: Iterable[str]) -> Tensor:
    """The fingerprint of every text, int64."""
    return torch.tensor(
        [fingerprint(prompt) for prompt in prompts], dtype=torch.int64, device="cpu"
    )


class KnownTexts:
    """Remembers the text at each index; a resumed run may have another prompt file."""

    def __init__(self) -> None:
        self._at: dict[int, int] = {}

    def replaced(self, batch: PromptBatch) -> list[int]:
        """Take note of a batch.

        Args:
            batch: Prompts with their dataset indices.

        Returns:
            The indices at which another text stood before: what is remembered of them is not true
            of these prompts.
        """
        pairs = zip(batch.index.tolist(), batch.prompts, strict=True)
        now = {index: fingerprint(prompt) for index, prompt in pairs}
        changed = [index for index, text in now.items() if self._at.get(index, text) != text]
        self._at |= now
        return changed

    def stale(self, prompts: Sequence[str]) -> list[int]:
        """The indices at which `prompts` has another text than was known there, or none at all."""
        return [
            index
            for index, text in self._at.items()
            if index >= len(prompts) or fingerprint(prompts[index]) != text
        ]

    def state_dict(self) -> dict[str, Any]:
        """The state, tensors only."""
        return {
            "index": torch.tensor(list(self._at), dtype=torch.int64, device="cpu"),
            "text": torch.tensor(list(self._at.values()), dtype=torch.int64, device="cpu"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._at = dict(zip(state["index"].tolist(), state["text"].tolist(), strict=True))
