"""The size of an image as a JPEG file: rewards that need no model and no prompt.

DDPO (arXiv 2305.13301) introduced both. Sizes are in kB, 1 kB = 1000 bytes; flow_grpo divides the
compressibility by another 500.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.utilities.images import to_pixels


def jpeg_kilobytes(images: Tensor, quality: int = 95) -> Tensor:
    """Size of each image as a JPEG file with Pillow's defaults (4:2:0 chroma).

    Args:
        images: Shape (N, 3, H, W), in [0, 1]; values beyond are clipped.
        quality: Pillow's JPEG quality, 1 to 100.

    Returns:
        kB (1000 bytes), fp32 on the images' device, shape (N,); NaN for an image with a value
        that is not finite.
    """
    sizes = torch.full((len(images),), float("nan"), device="cpu")
    pixels, finite = to_pixels(images)
    for row, picture in enumerate(pixels):
        if finite[row]:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, format="JPEG", quality=quality)
            sizes[row] = file.tell() / 1000
    return sizes.to(images.device)


class JpegIncompressibility(Reward):
    """The image's size as a JPEG file, in kB: rewards detail and noise.

    Args:
        quality: Pillow's JPEG quality, 1 to 100.

    Raises:
        ValueError: If `quality` is outside 1 to 100.
    """

    name = "jpeg_incompressibility"

    def __init__(self, quality: int = 95) -> None:
        if not 1 <= quality <= 100:
            raise ValueError(f"quality={quality} must lie between 1 and 100")
        self.quality = quality

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Size in kB, fp32, shape (N,); see `Reward.__call__`. Prompts do not matter."""
        return jpeg_kilobytes(images, self.quality)


class JpegCompressibility(JpegIncompressibility):
    """Minus the image's size as a JPEG file, in kB: rewards smooth images.

    Args:
        quality: Pillow's JPEG quality, 1 to 100.
    """

    name = "jpeg_compressibility"

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Minus the size in kB, fp32, shape (N,); see `Reward.__call__`. Prompts do not matter."""
        return -jpeg_kilobytes(images, self.quality)
