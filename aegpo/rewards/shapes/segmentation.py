"""From pixels to objects: color segmentation and connected components of Shapes images.

A rendered pixel is a mixture ``background + a * (color - background)``: the object's color inside
it (a = 1), the background outside (a = 0) and something between on an anti-aliased or blurred edge.
So each pixel is explained by the palette color whose line to the background passes nearest to it,
and ``a``, its *coverage*, keeps the edge's sub-pixel position, which a hard nearest-color rule
would lose.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aegpo.shapes.prompts import COLORS

COLOR_NAMES = tuple(COLORS)

BACKGROUND = np.full(3, 0.985, dtype=np.float32)
"""RGB that objects are mixed with at their edges: near white."""

FOREGROUND = 0.5
"""Coverage from which a pixel belongs to an object."""

CORE = 0.75
"""Coverage from which a pixel lies well inside an object."""

MIN_AREA = 12
"""Pixels below which a region is a speck; the smallest object of the world has 32."""

PREFILTER_STD = 0.4
"""Pixels; standard deviation of the Gaussian that takes the edge off pixel noise."""

EDGE_REACH = 2.0
"""Pixels around a component whose partial coverage still counts as its soft edge."""

# Distance of an object's color from the palette color's line, scaled as if the object were fully
# opaque: full credit up to the first, none from the second on.
_CLEAR_HUE, _NO_HUE = 0.15, 0.3

_DIRECTIONS = np.asarray(list(COLORS.values()), dtype=np.float32) - BACKGROUND  # (colors, 3)

Float = NDArray[np.float32]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """K colored regions found in N images.

    Args:
        image: (K,) row of the image that each lies in.
        color: (K,) index into ``COLOR_NAMES`` of the nearest palette color.
        color_confidence: (K,) 1 where the hue is clearly that color, 0 where it is no color of
            the palette.
        center: (K, 2) centroid (y, x) in pixels; the center of the first pixel is at 0.5.
        extent: (K, 2) height and width of the foreground in pixels.
        area: (K,) coverage summed over pixels.
        coverage: (K, H, W) coverage in [0, 1] of each region alone, its soft edge included.
    """

    image: Int
    color: Int
    color_confidence: Float
    center: Float
    extent: Float
    area: Float
    coverage: Float

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: Int) -> Components:
        """Takes some rows, in the order given."""
        return Components(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concatenate(first: Components, second: Components) -> Components:
        """Puts the rows of ``second`` behind those of ``first``."""
        return Components(
            *(
                np.concatenate([getattr(first, field.name), getattr(second, field.name)])
                for field in fields(Components)
            )
        )


@dataclass(frozen=True)
class Segmentation:
    """Connected regions, and the parts that some of them may really be.

    A blurred image joins objects that stand a pixel apart, but coverage dips between them.

    Args:
        regions: K components of everything above ``FOREGROUND``.
        parts: P components above ``CORE``, where a region holds two or more.
        parent: (P,) row in ``regions`` of the region that each part lies in.
    """

    regions: Components
    parts: Components
    parent: Int


def segment(images: Float) -> Segmentation:
    """Finds the colored regions of each image.

    Args:
        images: (N, 3, H, W) in [0, 1].

    Returns:
        The regions of all images and their parts; specks below ``MIN_AREA`` are left out.
    """
    smooth = ndimage.gaussian_filter(images, (0, 0, PREFILTER_STD, PREFILTER_STD), mode="nearest")
    pixels = np.moveaxis(smooth.astype(np.float32), 1, -1) - BACKGROUND  # (N, H, W, 3)
    coverage, rest = _explain(pixels)
    color = rest.argmin(-1)  # (N, H, W)
    own = np.take_along_axis(coverage, color[..., None], -1)[..., 0]

    labels = _label(color, own >= FOREGROUND)
    cores = _label(color, own >= CORE)
    core_labels, first = np.unique(cores, return_index=True)
    around = labels.ravel()[first] * (core_labels > 0)  # label of the region around each core
    siblings = np.bincount(around)[around]
    cores = np.where(np.isin(cores, core_labels[(around > 0) & (siblings > 1)]), cores, 0)

    regions, region_labels = _measure(labels, color, pixels)
    parts, part_labels = _measure(cores, color, pixels)
    parent = np.searchsorted(region_labels, around[np.searchsorted(core_labels, part_labels)])
    return Segmentation(regions, parts, parent)


def _explain(pixels: Float) -> tuple[Float, Float]:
    """Explains each pixel by each color: coverage and squared rest, both (N, H, W, colors)."""
    length = (_DIRECTIONS**2).sum(-1)  # squared, (colors,)
    along = pixels @ _DIRECTIONS.T
    coverage = (along / length).clip(0, 1)
    # |p - a v|² written out: no (N, H, W, colors, 3) array.
    rest = (pixels**2).sum(-1, keepdims=True) - 2 * coverage * along + coverage**2 * length
    return coverage, rest


def _label(color: Int, foreground: NDArray[np.bool_]) -> Int:
    """Numbers the regions of one color in each image, (N, H, W); 0 outside and on specks."""
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = ndimage.generate_binary_structure(2, 1)
    labels = np.zeros(color.shape, dtype=np.int64)
    found = 0
    for index in range(len(COLOR_NAMES)):
        own, count = ndimage.label(foreground & (color == index), structure=flat)
        labels += np.where(own > 0, own + found, 0)
        found += count
    sizes = np.bincount(labels.ravel(), minlength=found + 1)
    return np.where(sizes[labels] >= MIN_AREA, labels, 0)


def _measure(labels: Int, color: Int, pixels: Float) -> tuple[Components, Int]:
    """Measures each labeled region with its soft edge; returns the labels of the rows, too."""
    height, width = labels.shape[1:]
    # A soft edge belongs to the nearest region; the large spacing keeps the images apart.
    reach, nearest = ndimage.distance_transform_edt(
        labels == 0, sampling=(1e3, 1.0, 1.0), return_indices=True
    )
    owner = np.where(reach <= EDGE_REACH, labels[tuple(nearest)], 0)
    values, first = np.unique(labels, return_index=True)
    values, first = values[values > 0], first[values > 0]
    image = first // (height * width)
    own_color = color.reshape(-1)[first]

    # Coverage is measured anew along the region's own color, so that a pale or off-palette object
    # has the shape that a person sees. The color is read inside, where no edge dilutes it.
    inside = labels[image] == values[:, None, None]  # (K, H, W)
    inner = inside & (_eroded(labels)[image] == values[:, None, None])
    inner = np.where(inner.any((1, 2))[:, None, None], inner, inside)
    paint = np.einsum("khwc,khw->kc", pixels[image], inner.astype(np.float32))
    paint /= np.maximum(inner.sum((1, 2)), 1)[:, None]
    along = np.einsum("khwc,kc->khw", pixels[image], paint)
    alpha = along / np.maximum((paint**2).sum(-1), 1e-6)[:, None, None]
    alpha = np.where(owner[image] == values[:, None, None], alpha.clip(0, 1), 0).astype(np.float32)

    area = alpha.sum((1, 2))
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    center = np.stack([alpha.sum(2) @ rows, alpha.sum(1) @ columns], axis=1) / area[:, None]
    extent = np.stack([inside.any(2).sum(1), inside.any(1).sum(1)], axis=1)

    direction = _DIRECTIONS[own_color]
    share = (paint * direction).sum(-1) / (direction**2).sum(-1)
    off_line = np.linalg.norm(paint - share[:, None] * direction, axis=-1) / np.maximum(share, 0.5)
    confidence = ((_NO_HUE - off_line) / (_NO_HUE - _CLEAR_HUE)).clip(0, 1)
    found = Components(
        image,
        own_color,
        confidence.astype(np.float32),
        center.astype(np.float32),
        extent.astype(np.float32),
        area,
        alpha,
    )
    return found, values


def _eroded(labels: Int) -> Int:
    """Keeps the labels of pixels whose four neighbors have the same one."""
    padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
    same = np.ones(labels.shape, dtype=bool)
    for rows, columns in ((slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))):
        same &= padded[:, rows, columns] == labels
        same &= padded[:, columns, rows] == labels
    return np.where(same, labels, 0)
