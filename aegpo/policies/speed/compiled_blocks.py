"""The repeated blocks of a denoiser, compiled: one graph for all blocks of a kind."""

from __future__ import annotations

import torch
from torch import nn

GRAPHS_OF_A_KIND = 64
"""Graphs that torch may keep of one block's code before it goes on without compiling."""


def compile_blocks(denoiser: nn.Module) -> None:
    """Compile the repeated blocks of a diffusers model by `torch.compile`, in place.

    Blocks of one kind share their code: there is a graph for each kind of block (with and without
    a second attention, first and last), with and without gradient, with and without adapters; and
    a second one of each as soon as the number of rows has changed, for any number. They are made
    when first run. All of the model would take many times as long to compile.

    Args:
        denoiser: The model; what is around its blocks stays as it is.
    """
    for block in repeated_blocks(denoiser):
        block.compile()
    # All kinds, modes and numbers of rows count against one limit; beyond it nothing is compiled.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS_OF_A_KIND)


def repeated_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks that diffusers calls repeated; where it names none, those it never splits.

    Args:
        denoiser: A diffusers model.

    Returns:
        Those of them that stand in a list of blocks, in the order of the modules; the model itself
        if there are none.
    """
    kinds = getattr(denoiser, "_repeated_blocks", None)
    kinds = kinds or getattr(denoiser, "_no_split_modules", None) or []
    lists = [part for part in denoiser.modules() if isinstance(part, nn.ModuleList)]
    blocks = [block for part in lists for block in part if type(block).__name__ in kinds]
    return blocks or [denoiser]
