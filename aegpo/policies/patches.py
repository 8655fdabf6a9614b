"""Latents as the tokens that a transformer wants, where its pipeline packs them itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_patches(latents: Tensor, patch: int) -> Tensor:
    """Turns latents into tokens.

    Args:
        latents: Shape (n, C, H, W).
        patch: Height and width p of a patch.

    Returns:
        Tokens row by row, shape (n, H/p * W/p, p² C).
    """
    return F.pixel_unshuffle(latents, patch).flatten(2).mT


def from_patches(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Undoes `to_patches`.

    Args:
        tokens: Shape (n, height * width, p² C).
        height: Rows of patches.
        width: Patches per row.
        patch: Height and width p of a patch.

    Returns:
        Latents, shape (n, C, p height, p width).
    """
    return F.pixel_shuffle(tokens.mT.reshape(len(tokens), -1, height, width), patch)
