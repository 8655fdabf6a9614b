"""Parts of a network that run without their compiled code for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def uncompiled(network: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, whatever was compiled around some layers runs as Python; the rest stays compiled.

    A compiled block does not call what replaces torch's attention after it was traced, and would be
    traced anew for every hook. Its code is kept, and used again afterwards.

    Args:
        network: A network, wholly compiled, in blocks or not at all.
        layers: Layers within it.

    Yields:
        Nothing.
    """
    chosen = set(layers)
    around = {
        part: part._compiled_call_impl
        for part in network.modules()
        if part._compiled_call_impl is not None and not chosen.isdisjoint(part.modules())
    }
    for part in around:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, compiled in around.items():
            part._compiled_call_impl = compiled
