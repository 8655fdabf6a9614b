"""Draws scenes: anti-aliased flat shapes on a near-white canvas of 32x32 pixels.

Coordinates are in pixels, (x, y) with y downwards; pixel (column i, row j) covers [i, i+1] x
[j, j+1], so its center is (i + 0.5, j + 0.5).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aegpo.shapes.prompts import COLORS, SHAPES, Scene

CANVAS = 32
SIZES: dict[int, tuple[float, float]] = {1: (10, 16), 2: (9, 13), 3: (8, 11), 4: (8, 11)}
CROSS_ARM = 0.36  # the width of a cross's bars, as a share of its size
COLOR_JITTER = 0.03
TINT = 0.03
GAP = 1.0  # pixels between the bounding boxes of two objects, so that their colors never touch
_TRIES = 32

Array = npt.NDArray[np.float32]


def shape_mask(shape: str, size: float, center: tuple[float, float], canvas: int = CANVAS) -> Array:
    """How much of each pixel a shape covers.

    All shapes fill a square bounding box of `size` pixels: the circle is inscribed, the triangle is
    isosceles with its tip in the middle of the upper edge, the cross is an upright plus.

    Args:
        shape: One of `SHAPES`.
        size: Side of the bounding box in pixels.
        center: (x, y) of the middle of the bounding box, in pixels.
        canvas: Side of the square canvas in pixels.

    Returns:
        (canvas, canvas) float32 coverage in [0, 1], row-major (row = y).

    Raises:
        ValueError: For an unknown shape.
    """
    axis = np.arange(canvas, dtype=np.float32) + np.float32(0.5)
    x, y = axis - np.float32(center[0]), axis - np.float32(center[1])
    half = size / 2
    mask: Array
    if shape == "square":
        mask = _bar(y, half)[:, None] * _bar(x, half)
    elif shape == "cross":
        arm = CROSS_ARM * half
        upright = _bar(y, half)[:, None] * _bar(x, arm)
        lying = _bar(y, arm)[:, None] * _bar(x, half)
        mask = np.maximum(upright, lying)
    elif shape == "circle":
        distance = np.sqrt((y * y)[:, None] + x * x) - np.float32(half)
        mask = np.clip(np.float32(0.5) - distance, 0, 1)
    elif shape == "triangle":
        # The slanted sides run from (0, -half) to (+-half, half): |x| - (y + half) / 2 = 0.
        slope = np.float32(2 / math.sqrt(5))
        slanted = (np.abs(x) - np.float32(0.5) * (y + np.float32(half))[:, None]) * slope
        mask = np.clip(np.float32(0.5) - slanted, 0, 1) * _bar(y, half)[:, None]
    else:
        raise ValueError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")
    return mask


def _bar(offset: Array, half: float) -> Array:
    """Exact share of each unit pixel at `offset` that lies within [-half, half]."""
    share: Array = np.clip(np.float32(half + 0.5) - np.abs(offset), 0, 1)
    return share


def layout(scene: Scene, rng: np.random.Generator) -> tuple[Array, Array]:
    """Sizes and centers of a scene's objects: inside the canvas, apart, and in their relation.

    In a relation the centers differ along its axis by at least the mean size and a pixel, and by
    at most 0.7 times as much along the other axis.

    Args:
        scene: The scene; its objects are laid out group by group.
        rng: Source of the placement.

    Returns:
        Sizes (num_objects,) and centers (num_objects, 2) as (x, y), in pixels, float32.
    """
    num = scene.num_objects
    low, high = SIZES[num]
    while True:  # in 32 tries all but the fullest canvases succeed
        size = rng.uniform(low, high, (_TRIES, num)).astype(np.float32)
        edge = size[..., None] / 2 + np.float32(0.5)
        center = edge + (CANVAS - 2 * edge) * rng.random((_TRIES, num, 2), dtype=np.float32)
        good = np.ones(_TRIES, dtype=bool)
        for a in range(num):
            for b in range(a):
                apart = np.abs(center[:, a] - center[:, b]).max(-1)
                good &= apart >= (size[:, a] + size[:, b]) / 2 + GAP
        if scene.relation is not None:
            offset = center[:, 0] - center[:, 1]
            axis = 0 if scene.relation in ("left of", "right of") else 1
            sign = -1 if scene.relation in ("left of", "above") else 1
            along, across = sign * offset[:, axis], np.abs(offset[:, 1 - axis])
            good &= (along >= size.mean(-1) + GAP) & (across <= 0.7 * along)
        if good.any():
            row = int(good.argmax())
            return size[row], center[row]


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """Draw one scene at random sizes and places.

    Args:
        scene: What to draw.
        rng: Source of placement, sizes, background tint and color jitter.

    Returns:
        (3, 32, 32) float32 image in [0, 1].
    """
    size, center = layout(scene, rng)
    background = 1 - TINT * rng.random(3, dtype=np.float32)
    image = np.empty((3, CANVAS, CANVAS), dtype=np.float32)
    image[:] = background[:, None, None]
    colors = [(g.color, g.shape) for g in scene.groups for _ in range(g.count)]
    jitter = rng.uniform(-COLOR_JITTER, COLOR_JITTER, (len(colors), 3))
    for k, (color, shape) in enumerate(colors):
        fill = np.clip(np.asarray(COLORS[color]) + jitter[k], 0, 1).astype(np.float32)
        mask = shape_mask(shape, float(size[k]), (float(center[k, 0]), float(center[k, 1])))
        # Objects never touch, so adding the difference to the background is alpha blending.
        image += (fill - background)[:, None, None] * mask
    return image.clip(0, 1)


def render_batch(scenes: Sequence[Scene], seed: int) -> Tensor:
    """Draw many scenes; row i depends on `seed`, i and `scenes[i]` only.

    Args:
        scenes: The n scenes to draw.
        seed: Non-negative seed.

    Returns:
        (n, 3, 32, 32) float32 images in [0, 1].
    """
    images = np.empty((len(scenes), 3, CANVAS, CANVAS), dtype=np.float32)
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, i, zlib.crc32(scene.text.encode())))
        images[i] = render(scene, rng)
    return torch.from_numpy(images)
