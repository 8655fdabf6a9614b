"""Image tensors as 8-bit pixels, as pictures, and as a grid with a caption under each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from aegpo.utilities.files import replacing


def to_pixels(images: Tensor) -> tuple[npt.NDArray[np.uint8], list[bool]]:
    """Round images to 8 bits and say which of them are whole.

    Args:
        images: Shape (N, 3, H, W), in [0, 1]; values beyond are clipped.

    Returns:
        Pixels, uint8, shape (N, H, W, 3), and for each image whether all its values are finite;
        the pixels of one that is not mean nothing.
    """
    finite: list[bool] = images.isfinite().flatten(1).all(dim=1).tolist()
    pixels = (images.detach().float().clamp(0, 1) * 255).round().nan_to_num().byte()
    return pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy(), finite


def save_png(picture: Image.Image, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a picture, whole or not at all.

    Args:
        picture: The picture.
        path: The PNG file.
        about: Texts in the file that say what it shows.

    Raises:
        OSError: If the disk refuses.
    """
    info = PngInfo()
    for key, value in (about or {}).items():
        info.add_text(key, value)
    with replacing(path) as partial:
        picture.save(partial, format="PNG", pnginfo=info)


def to_picture(image: Tensor) -> Image.Image:
    """One image as 8-bit RGB.

    Args:
        image: Shape (3, H, W); values outside [0, 1] are clipped.

    Returns:
        The picture.
    """
    return Image.fromarray(to_pixels(image[None])[0][0])


def save_picture(image: Tensor, file: Path, about: Mapping[str, str]) -> None:
    """Write an image to a PNG file that says what it shows; see `save_png`.

    Args:
        image: Shape (3, H, W); values outside [0, 1] are clipped.
        file: Where to.
        about: Texts that the file holds, by name.
    """
    save_png(to_picture(image), file, about)


LEAST_CAPTION, MOST_LINES = 40, 9
"""Pixels kept for a caption at least, and the lines of the longest that is shown whole."""
_LINE, _GAP = 13, 4


def image_grid(
    images: Tensor, captions: list[str], columns: int = 8, side: int = 128
) -> Image.Image:
    """Lay images out in rows, with their captions.

    Args:
        images: Shape (n, 3, H, W) in [0, 1].
        captions: One caption an image, in lines that are wrapped to the width of a cell; beyond
            `MOST_LINES` of them an ellipsis stands for the rest.
        columns: Images per row.
        side: Longer side of an image in the grid, in pixels; small images are enlarged without
            smoothing.

    Returns:
        The grid as an RGB image.

    Raises:
        ValueError: If there are more captions than images, or fewer.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images have {len(captions)} captions; give each one")
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    cell = (round(width * scale), round(height * scale))
    font = ImageFont.load_default(size=11)
    wrapped = [_wrapped(caption, cell[0], font) for caption in captions]
    most = max((len(lines) for lines in wrapped), default=0)
    text_height = max(LEAST_CAPTION, most * _LINE + _GAP)  # one for all, so that rows are alike
    rows = math.ceil(len(images) / columns)
    grid = Image.new(
        "RGB", (columns * (cell[0] + _GAP), rows * (cell[1] + text_height)), color=(255, 255, 255)
    )
    draw = ImageDraw.Draw(grid)
    mode = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    for number, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
        left = number % columns * (cell[0] + _GAP)
        top = number // columns * (cell[1] + text_height)
        grid.paste(to_picture(image).resize(cell, mode), (left, top))
        for line, text in enumerate(lines):
            place = (left + 2, top + cell[1] + 1 + line * _LINE)
            draw.text(place, text, fill=(0, 0, 0), font=font)
    return grid


def _wrapped(caption: str, width: int, font: Any) -> list[str]:
    """A caption's lines, each as wide as an image at most, as far as a letter fits in."""
    lines: list[str] = []
    for paragraph in caption[:2000].splitlines():  # more than a picture ever shows
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while len(word) > 1 and font.getlength(word) > width and len(lines) <= MOST_LINES:
                lengths = range(min(len(word), width), 1, -1)  # no letter is narrower than a pixel
                fits = next((n for n in lengths if font.getlength(word[:n]) <= width), 1)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        if line:
            lines.append(line)
    if len(lines) <= MOST_LINES:
        return lines
    last = lines[MOST_LINES - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: MOST_LINES - 1], f"{last}..."]


def side_by_side(
    images: Mapping[str, Tensor], captions: Mapping[str, Sequence[str]], images_per_prompt: int = 1
) -> Image.Image:
    """Lay out the images of several models so that those of one prompt stand together.

    Args:
        images: For each model n * k images, those of one prompt side by side,
            shape (n * k, 3, H, W) in [0, 1].
        captions: For each model n * k captions, to which its name is added.
        images_per_prompt: k.

    Returns:
        The grid; about 8 images in a row, and always whole prompts.
    """
    block = images_per_prompt * len(images)
    shown: list[Tensor] = []
    labels: list[str] = []
    total = len(next(iter(images.values())))
    for first in range(0, total, images_per_prompt):
        rows = slice(first, first + images_per_prompt)
        for model, drawn in images.items():
            shown += drawn[rows].cpu()
            labels += [f"{model}: {caption}" for caption in captions[model][rows]]
    stacked = torch.stack(shown)
    columns = block * min(max(1, 8 // block), total // images_per_prompt)
    return image_grid(stacked, labels, columns, side=min(max(128, *stacked.shape[-2:]), 256))
