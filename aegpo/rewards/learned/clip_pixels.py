"""The input of CLIP-like networks, from tensors: what their authors' transforms make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def clip_pixels(
    images: Tensor,
    size: int,
    fit: Literal["crop", "pad", "squash"],
    mean: Sequence[float] = OPENAI_CLIP_MEAN,
    std: Sequence[float] = OPENAI_CLIP_STD,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    clip: bool = True,
) -> Tensor:
    """Resize with antialiasing, make square and normalize.

    Most published transforms work on 8-bit PIL images, in which no value leaves its range; this
    differs from them by their rounding, about 1/255 in a pixel. Some resize tensors of floats,
    which bicubic weights take beyond black and white at sharp edges, and leave them there; with
    `clip=False` this does so, too. When an odd number of rows or columns is cut off, the libraries
    differ by one in where the middle is; here it is where torchvision has it.

    Args:
        images: Shape (N, 3, H, W), in [0, 1].
        size: Height and width of the result, in pixels.
        fit: "crop" resizes the shorter side to `size` and cuts the middle out, as CLIP does; "pad"
            resizes the longer side and adds black on both ends of the other, as HPSv2 does;
            "squash" resizes both sides to `size`, as SigLIP does.
        mean: Of the channels; OpenAI's.
        std: Of the channels; OpenAI's.
        interpolation: Of the resizing.
        clip: Whether what overshoots is cut back to [0, 1] after each pass, as PIL does.

    Returns:
        Shape (N, 3, size, size), fp32.
    """
    height, width = images.shape[-2:]
    if fit == "crop":  # rounded down, as torchvision and transformers do
        shorter = min(height, width)
        target = [size * height // shorter, size * width // shorter]
    elif fit == "squash":
        target = [size, size]
    else:
        longer = max(height, width)
        # In this order: the product of whole numbers is rounded to another pixel at some ties.
        target = [max(1, round(side * (size / longer))) for side in (height, width)]
    resized, mode = images.float(), InterpolationMode(interpolation)
    if clip:  # PIL resizes along the width first, and clips after either pass
        for sides in ([height, target[1]], target):
            resized = functional.resize(resized, sides, mode, antialias=True).clamp(0, 1)
    else:
        resized = functional.resize(resized, target, mode, antialias=True)
    # center_crop pads what is smaller than `size` with zeros: black, for it is not normalized yet.
    square = functional.center_crop(resized, [size, size])
    pixels: Tensor = functional.normalize(square, list(mean), list(std))
    return pixels
