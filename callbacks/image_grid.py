"""A grid of images with a caption under each."""

from __future__ import annotations

import math
import textwrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def image_grid(
    images: Tensor, captions: list[str], columns: int = 8, side: int = 128
) -> Image.Image:
    """Lay images out in rows, with their captions.

    Args:
        images: Shape (n, 3, H, W) in [0, 1].
        captions: One caption an image; wrapped to the width of a cell.
        columns: Images per row.
        side: Longer side of an image in the grid, in pixels; small images are enlarged without
            smoothing.

    Returns:
        The grid as an RGB image.
    """
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    cell = (round(width * scale), round(height * scale))
    text_height = 40
    rows = math.ceil(len(images) / columns)
    grid = Image.new(
        "RGB", (columns * (cell[0] + 4), rows * (cell[1] + text_height)), color=(255, 255, 255)
    )
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=11)
    mode = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        left = number % columns * (cell[0] + 4)
        top = number // columns * (cell[1] + text_height)
        grid.paste(Image.fromarray(pixels).resize(cell, mode), (left, top))
        lines = "\n".join(textwrap.wrap(caption, width=max(cell[0] // 6, 8))[:3])
        draw.multiline_text(
            (left + 2, top + cell[1] + 1), lines, fill=(0, 0, 0), font=font, spacing=1
        )
    return grid
