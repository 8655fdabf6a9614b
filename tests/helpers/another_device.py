"""A strategy under which models are built as they are on a GPU: on another default device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


class BuildsOnMeta(SingleDeviceStrategy):
    """Trains on the CPU; torch's default device is meta where Lightning builds the model.

    On a GPU Lightning makes it the GPU there, on a CPU it does nothing. What does not name its
    device lands on meta, and whoever meets it later fails.
    """

    built: ClassVar[int] = 0
    """How many models were built so."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """As Lightning has it, on meta."""
        type(self).built += 1
        with super().tensor_init_context(empty_init), torch.device("meta"):
            yield
