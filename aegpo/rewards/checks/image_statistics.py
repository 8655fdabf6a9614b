"""What a picture is, whatever it shows: seven numbers that a policy can move at will."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from aegpo.rewards.jpeg import jpeg_kilobytes
from aegpo.utilities.images import to_pixels

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG has it


def brightness(images: Tensor) -> Tensor:
    """Mean luma, in [0, 1], shape (N,)."""
    return _luma(images).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the luma, in [0, .5], shape (N,)."""
    return _luma(images).flatten(1).std(1, correction=0)


def saturation(images: Tensor) -> Tensor:
    """Mean of the largest channel less the smallest, in [0, 1], shape (N,)."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def edges(images: Tensor) -> Tensor:
    """Mean absolute difference of luma between neighbors, in [0, 1], shape (N,)."""
    luma = _luma(images)
    across, down = luma.diff(dim=2).abs().mean((1, 2)), luma.diff(dim=1).abs().mean((1, 2))
    return (across + down) / 2


def one_color(images: Tensor, levels: int = 16) -> Tensor:
    """Share of the pixels that have the most frequent color, in [0, 1], shape (N,).

    Args:
        images: Shape (N, 3, H, W) in [0, 1].
        levels: Levels of each channel that are told apart.

    Returns:
        The share of each image, shape (N,).
    """
    bins = (images * levels).long().clamp(0, levels - 1)
    color = ((bins[:, 0] * levels + bins[:, 1]) * levels + bins[:, 2]).flatten(1)
    most = [int(torch.bincount(one).max()) for one in color]
    return torch.tensor(most, dtype=torch.float64, device="cpu") / color.shape[1]


def png_kilobytes(images: Tensor) -> Tensor:
    """Size of each image as a PNG file, in kB (1000 bytes), shape (N,)."""
    sizes = []
    for picture in to_pixels(images)[0]:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float64, device="cpu")


class Statistic(NamedTuple):
    """One of the numbers.

    Args:
        of: Measures images.
        less: What images with less of it are.
        more: What images with more of it are.
    """

    of: Callable[[Tensor], Tensor]
    less: str
    more: str


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "brightness": Statistic(brightness, "darker", "brighter"),
        "contrast": Statistic(contrast, "lower in contrast", "higher in contrast"),
        "saturation": Statistic(saturation, "grayer", "more colorful"),
        "edges": Statistic(edges, "smoother", "busier"),
        "one color": Statistic(one_color, "less of a single color", "more of a single color"),
        "JPEG size": Statistic(jpeg_kilobytes, "plainer", "more detailed or noisy"),
        "PNG size": Statistic(png_kilobytes, "plainer", "more detailed or noisy"),
    }
)
"""By name, in the order of `image_statistics`."""


def image_statistics(images: Tensor) -> Tensor:
    """Measure all of `STATISTICS`.

    Args:
        images: Shape (N, 3, H, W) in [0, 1], finite.

    Returns:
        Shape (N, 7), float64, on the CPU.
    """
    given = images.detach().cpu().float().clamp(0, 1)
    return torch.stack([one.of(given).double() for one in STATISTICS.values()], dim=1)


def _luma(images: Tensor) -> Tensor:
    weights = images.new_tensor(_LUMA)
    return (images * weights[:, None, None]).sum(1)
