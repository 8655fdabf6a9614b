"""Attention of torch and of diffusers' dispatcher, told of while a watched layer runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Attended = Callable[[Tensor, Tensor, "float | None", "Tensor | None", bool], None]
"""Told queries (n, h, N, d), keys (n, h, M, d), scale, mask and causality of one attention."""


class WatchedAttention:
    """What stands in for `F.scaled_dot_product_attention` and the kernels of diffusers' dispatcher.

    Kernels such as flex or flash-attn never reach torch's own function. They stand in a table of
    diffusers, whose entries are replaced and put back. Between `on` and `off` everything is told
    of, after it was computed; otherwise torch and diffusers are as they were found, so that
    compiled code around it, which looks whether they are, stays valid.

    Args:
        watch: Makes the function that takes the place of torch's.
        attended: Called once for each attention of the dispatcher.
    """

    def __init__(
        self, watch: Callable[[Callable[..., Tensor]], Callable[..., Tensor]], attended: Attended
    ) -> None:
        module = sys.modules.get("diffusers.models.attention_dispatch")
        self._table = getattr(getattr(module, "_AttentionBackendRegistry", None), "_backends", {})
        self._watch, self._attended = watch, attended
        self._find()
        self._depth = 0

    def on(self) -> None:
        """Let all attention be told of, until `off` was called as often."""
        self._depth += 1
        if self._depth == 1:
            if F.scaled_dot_product_attention is not self._original or self._table != self._kernels:
                self._find()  # somebody else has replaced some since
            self._put(self._replacement, self._told)

    def off(self) -> None:
        """Take back one `on`."""
        self._depth -= 1
        if self._depth == 0:
            self._put(self._original, self._kernels)

    def close(self) -> None:
        """Take back every `on`."""
        if self._depth > 0:
            self._depth = 0
            self._put(self._original, self._kernels)

    def _find(self) -> None:
        self._kernels = dict(self._table)
        self._told = {name: _told(one, self._attended) for name, one in self._kernels.items()}
        self._original = F.scaled_dot_product_attention
        self._replacement = self._watch(self._original)

    def _put(
        self, attention: Callable[..., Tensor], kernels: dict[Any, Callable[..., Any]]
    ) -> None:
        F.scaled_dot_product_attention = attention
        self._table.update(kernels)


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
