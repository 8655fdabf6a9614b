"""open_clip's image preprocessing, on batches of tensors where they are.

open_clip's own goes through Pillow, one 8-bit image at a time on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F


def preprocess(images: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Resizes, crops or pads to the model's size, and normalizes.

    It differs from open_clip's own by the rounding to 8 bits of a resized image only.

    Args:
        images: Shape (N, 3, H, W) in [0, 1]; other values are clipped.
        config: A model's `visual.preprocess_cfg`: "size", "mean", "std", "interpolation"
            ("bilinear", or else bicubic), "resize_mode" ("shortest" side and crop, "longest" side
            and pad with "fill_color", or "squash").

    Returns:
        fp32 images of the model's size with the model's mean and standard deviation.
    """
    from open_clip.transform import center_crop_or_pad

    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    resized = F.resize(
        images.float().clamp(0, 1),
        _resized_shape(images.shape[-2:], (height, width), config["resize_mode"]),
        InterpolationMode.BILINEAR
        if config["interpolation"] == "bilinear"
        else InterpolationMode.BICUBIC,
        antialias=True,
    ).clamp(0, 1)  # as 8 bits do: bicubic weights overshoot at edges
    cropped = center_crop_or_pad(resized, [height, width], fill=config["fill_color"] / 255)
    normalized: Tensor = F.normalize(cropped, config["mean"], config["std"])
    return normalized


def _resized_shape(given: tuple[int, ...], wanted: tuple[int, int], mode: str) -> list[int]:
    """Height and width, or the shorter side alone, before cropping or padding."""
    if mode == "squash":
        return list(wanted)
    if mode == "shortest" and wanted[0] == wanted[1]:
        return [wanted[0]]  # torchvision rounds the other side down
    ratios = [side / target for side, target in zip(given, wanted, strict=True)]
    ratio = max(ratios) if mode == "longest" else min(ratios)
    return [round(side / ratio) for side in given]
