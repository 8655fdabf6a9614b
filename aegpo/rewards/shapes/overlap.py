"""How well each found object overlaps each shape of the world.

An object of a given area and centroid can be a circle in one way only, and the same for a square,
a triangle or a cross: so nothing is searched but a small neighborhood of that size. The templates
come from the renderer, drawn once for every size and sub-pixel position, and the overlap is the
soft intersection over union of coverages, which counts edges by their true position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aegpo.rewards.shapes.segmentation import PREFILTER_STD, Components, Float, Int, segment
from aegpo.shapes.prompts import SHAPES
from aegpo.shapes.render import shape_mask

SIZE_STEP = 0.5  # pixels
SIZES = np.arange(5.0, 22.0, SIZE_STEP)
PHASES = 4
"""Sub-pixel positions per axis that templates are drawn at."""

WINDOW = 26
"""Side in pixels of the window around a centroid in which object and template are compared."""

SOFTNESS = (0.0, 0.7)
"""Pixels; standard deviations of the blur allowed to the image. The better fit counts."""

SPLIT_GAIN = 0.03
"""Overlap that the parts of a region must gain over the whole to count as objects of their own."""

_CHUNK = 256  # objects at a time, for the cache


@dataclass(frozen=True)
class FoundObjects:
    """K objects found in N images, image after image, larger ones first.

    Args:
        components: Where they are and what color.
        overlap: (K, S) soft intersection over union with each shape, in the order of ``SHAPES``.
    """

    components: Components
    overlap: Float

    def __len__(self) -> int:
        return len(self.components)


def find_objects(images: Float) -> FoundObjects:
    """Finds the objects of each image and compares each with every shape.

    A region is taken apart where its parts look more like shapes than it does as a whole.

    Args:
        images: (N, 3, H, W) in [0, 1].

    Returns:
        The objects of all images.
    """
    segmentation = segment(images)
    regions, parts, parent = segmentation.regions, segmentation.parts, segmentation.parent
    whole, apart = shape_overlap(regions), shape_overlap(parts)
    num_parts = np.bincount(parent, minlength=len(regions))
    best = np.bincount(parent, weights=apart.max(1), minlength=len(regions))
    gain = best / np.maximum(num_parts, 1) - whole.max(1, initial=0)
    split = (num_parts > 1) & (gain > SPLIT_GAIN)

    kept, taken = np.flatnonzero(~split), np.flatnonzero(split[parent])
    components = Components.concatenate(regions.select(kept), parts.select(taken))
    order = np.lexsort((-components.area, components.image))
    overlap = np.concatenate([whole[kept], apart[taken]])
    return FoundObjects(components.select(order), overlap[order])


def shape_overlap(components: Components) -> Float:
    """Compares each object with each shape of its own area and centroid.

    Args:
        components: K objects.

    Returns:
        (K, S) soft intersection over union in [0, 1], in the order of ``SHAPES``; a rendered object
        comes near 1 with its own shape.
    """
    bank, fill = _template_bank()  # (softness, S, sizes, phases, phases, WINDOW²), (S,)
    overlaps = np.zeros((len(components), len(SHAPES)), dtype=np.float32)
    for start in range(0, len(components), _CHUNK):
        rows = slice(start, start + _CHUNK)
        windows, phase = _windows(components.coverage[rows], components.center[rows])
        area = windows.sum(1)  # (k,)
        size = np.sqrt(area[:, None] / fill)  # (k, S)
        middle = np.rint((size - SIZES[0]) / SIZE_STEP).astype(np.int64)
        shape = np.arange(len(SHAPES))
        for level in bank:
            for step in (-1, 0, 1):
                index = (middle + step).clip(0, len(SIZES) - 1)
                template = level[shape, index, phase[:, :1], phase[:, 1:]]  # (k, S, WINDOW²)
                common = np.minimum(template, windows[:, None]).sum(-1)
                union = area[:, None] + template.sum(-1) - common
                overlaps[rows] = np.maximum(overlaps[rows], common / np.maximum(union, 1e-6))
    return overlaps


def _windows(coverage: Float, center: Float) -> tuple[Float, Int]:
    """Cuts a window around each centroid; says where in the middle pixel the centroid lies."""
    pad = WINDOW // 2
    # Phase p stands for a centroid at (p + 0.5) / PHASES inside its pixel.
    quarters = np.rint(center * PHASES - 0.5).astype(np.int64)
    pixel, phase = quarters // PHASES, quarters % PHASES  # (k, 2)
    padded = np.pad(coverage, ((0, 0), (pad, pad), (pad, pad)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(1, 2))
    limit = np.asarray(views.shape[1:3]) - 1
    pixel = pixel.clip(0, limit)
    windows = views[np.arange(len(coverage)), pixel[:, 0], pixel[:, 1]]
    return windows.reshape(len(coverage), -1), phase


@lru_cache(maxsize=1)
def _template_bank() -> tuple[Float, NDArray[np.float64]]:
    """Draws every shape at every size and sub-pixel position of its centroid.

    Returns:
        The templates, (softness, shapes, sizes, phases, phases, WINDOW²), and each
        shape's area as a share of its squared size, (shapes,).
    """
    canvas, size = 96, 64.0
    fill, offset = [], []
    for shape in SHAPES:
        mask = _draw(shape, size, (canvas / 2, canvas / 2), canvas)
        grid = np.arange(canvas) + 0.5
        mass = mask.sum()
        fill.append(mass / size**2)
        # The triangle's centroid lies below its middle; in x all shapes are symmetric.
        offset.append((mask.sum(1) @ grid / mass - canvas / 2) / size)
    phases = (np.arange(PHASES) + 0.5) / PHASES + WINDOW // 2
    sharp = np.empty((len(SHAPES), len(SIZES), PHASES, PHASES, WINDOW, WINDOW), dtype=np.float32)
    for s, shape in enumerate(SHAPES):
        for z, size in enumerate(SIZES):
            for i, y in enumerate(phases):
                for j, x in enumerate(phases):
                    sharp[s, z, i, j] = _draw(shape, float(size), (x, y - offset[s] * size), WINDOW)
    levels = [np.hypot(PREFILTER_STD, blur) for blur in SOFTNESS]
    bank = np.stack([ndimage.gaussian_filter(sharp, (0, 0, 0, 0, std, std)) for std in levels])
    return bank.reshape(*bank.shape[:-2], -1), np.asarray(fill)


def _draw(shape: str, size: float, center: tuple[float, float], canvas: int) -> Float:
    return np.asarray(shape_mask(shape, size, center, canvas), dtype=np.float32)
