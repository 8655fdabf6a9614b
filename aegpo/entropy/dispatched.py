"""Attention that goes through diffusers' dispatcher, whichever kernel computes it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

Attended = Callable[[Tensor, Tensor, "float | None", "Tensor | None", bool], None]
"""Told queries (n, h, N, d), keys (n, h, M, d), scale, mask and causality of one attention."""


@contextmanager
def watching_dispatcher(attended: Attended) -> Iterator[None]:
    """Inside, tells of every attention that diffusers hands to a kernel, after it was computed.

    Kernels such as flex or flash-attn never reach torch's own function. They stand in a table of
    diffusers, whose entries are replaced here and put back.

    Args:
        attended: Called once for each attention.

    Yields:
        Nothing.
    """
    module = sys.modules.get("diffusers.models.attention_dispatch")
    table = getattr(getattr(module, "_AttentionBackendRegistry", None), "_backends", {})
    before = dict(table)
    table.update({name: _told(kernel, attended) for name, kernel in before.items()})
    try:
        yield
    finally:
        table.update(before)


def _told(kernel: Callable[..., Any], attended: Attended) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def told(**given: Any) -> Any:
        output = kernel(**given)
        mask = given.get("attn_mask")
        if mask is None or isinstance(mask, Tensor):  # a mask of another kind cannot be read
            if mask is not None and mask.dim() == 2 and len(mask) == len(given["query"]):
                mask = mask[:, None, None]  # of keys, (n, M)
            query, key = given["query"].transpose(1, 2), given["key"].transpose(1, 2)
            attended(query, key, given.get("scale"), mask, bool(given.get("is_causal")))
        return output

    return told
