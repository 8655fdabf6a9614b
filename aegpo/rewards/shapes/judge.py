"""The hard verdict of the Shapes world: does the picture show what the prompt says?

The judge follows GenEval (Ghosh et al. 2023, arXiv 2310.11513): find the objects, name their color
and shape, compare them with the prompt clause by clause. It reads pixels only and is the held-out
measure of the quickstart, which never trains on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.shapes.overlap import find_objects
from aegpo.rewards.shapes.segmentation import COLOR_NAMES, Components, Float
from aegpo.shapes.prompts import SHAPES, Scene, parse

IMAGE_SIZE = 32
"""Side in pixels at which images are judged."""

COLOR_ONLY, SHAPE_ONLY = 0.25, 0.15
"""Credit of an object that has the color but not the shape, or the shape but not the color."""

INEXACT_COUNT = 0.75
"""Factor on the count clause of a wrong number of objects, beside the ratio of the two numbers."""

RELATION_BROKEN = 0.4
"""Factor on the score of a picture whose objects do not stand as the prompt says."""

POSITION_MARGIN = 0.1
"""Share of the two objects' sides by which centers must differ at all, as in GenEval."""

_RELATIONS = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}
"""Axis (0 down, 1 right) and sign of the first object's offset from the second."""

# Ramps from no credit to full credit, measured on rendered, blurred and autoencoded objects and on
# blobs; see tests/aegpo/rewards/shapes/test_judge.py.
_OVERLAP = (0.78, 0.88)
_LEAD = (-0.01, 0.03)  # overlap with the requested shape minus overlap with the best other one

_CHUNK = 512  # images at a time, a few dozen MB


@dataclass(frozen=True)
class FoundObject:
    """One object of a picture.

    Args:
        color: Name of the nearest palette color.
        shape: Name of the shape that overlaps best.
        color_credit: How clearly it has that color, in [0, 1].
        shape_credit: How clearly it is that shape, in [0, 1]; a blob is near 0.
        center: Centroid (y, x) in pixels of the 32 x 32 picture.
        area: Size in square pixels.
    """

    color: str
    shape: str
    color_credit: float
    shape_credit: float
    center: tuple[float, float]
    area: float


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one picture, clause by clause, each in [0, 1].

    Args:
        score: ``objects * count``, times ``RELATION_BROKEN`` where the relation fails.
        color: Share of the matched objects with the requested color.
        shape: Share of the matched objects with the requested shape.
        objects: Mean credit of the matched objects: both, color alone, or shape alone.
        count: 1 for the requested number of objects; less for a missing or a surplus one.
        relation: 1 if the objects stand as the prompt says or it says nothing, else 0.
        found: All objects, matched or not.
    """

    score: float
    color: float
    shape: float
    objects: float
    count: float
    relation: float
    found: tuple[FoundObject, ...]


class ShapesJudge(Reward):
    """Judges Shapes pictures by color, shape, count and relation; a score in [0, 1].

    The score is the product of three clauses. *Objects*: found and requested objects are matched
    one to one for the highest mean credit: 1 for color and shape together, 0.25 for the color and
    0.15 for the shape alone. *Count*: the ratio of the smaller to the larger number, times 0.75
    unless they are equal. *Relation*: 0.4 if the centers do not stand as requested. The count is
    GenEval's ``1 - |requested - found| / requested`` made gentler, so that a surplus object does
    not undo a picture. Images of another size are resized to 32 x 32.
    """

    name = "shapes_judge"
    range = (0.0, 1.0)
    deterministic = True

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Scores each picture against its prompt.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts of the Shapes world.
            metadata: N dicts, not read.

        Returns:
            (N,) float32 on the CPU in [0, 1]; NaN where a picture holds a non-finite pixel.

        Raises:
            ValueError: If the numbers of pictures and prompts differ or a text is not of the world.
        """
        verdicts = judge_images(images, [parse(prompt) for prompt in prompts])
        return torch.tensor(
            [verdict.score for verdict in verdicts], dtype=torch.float32, device="cpu"
        )


def judge_images(images: Tensor, scenes: Sequence[Scene]) -> list[Verdict]:
    """Judges pictures, each against its own scene.

    Args:
        images: (N, 3, H, W) in [0, 1].
        scenes: N scenes.

    Returns:
        N verdicts; the score is NaN where a picture holds a non-finite pixel.

    Raises:
        ValueError: If ``images`` is not (N, 3, H, W) or the numbers differ.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (N, 3, H, W), but have shape {tuple(images.shape)}")
    if len(images) != len(scenes):
        raise ValueError(
            f"{len(images)} images, but {len(scenes)} prompts; give one for each image"
        )
    verdicts: list[Verdict] = []
    for start in range(0, len(scenes), _CHUNK):
        rows = slice(start, start + _CHUNK)
        verdicts += _judge_chunk(_to_judged_size(images[rows]), scenes[rows])
    return verdicts


def _judge_chunk(pixels: Float, scenes: Sequence[Scene]) -> list[Verdict]:
    finite = np.asarray(np.isfinite(pixels).all((1, 2, 3)))
    safe = np.where(finite[:, None, None, None], pixels, np.float32(1)).clip(0, 1)
    found = find_objects(safe)
    shapes = shape_credit(found.overlap)
    first = np.searchsorted(found.components.image, np.arange(len(scenes) + 1))
    return [
        _verdict(found.components, shapes, slice(int(first[row]), int(first[row + 1])), scene)
        if finite[row]
        else Verdict(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, ())
        for row, scene in enumerate(scenes)
    ]


def shape_credit(overlap: Float) -> Float:
    """Turns overlaps into verdicts: a shape must fit well, and better than every other shape.

    Args:
        overlap: (K, S) soft intersection over union of K objects with S shapes.

    Returns:
        (K, S) credit in [0, 1].
    """
    ranked = np.sort(overlap, axis=1)
    best_other = np.where(overlap == ranked[:, -1:], ranked[:, -2:-1], ranked[:, -1:])
    return _ramp(overlap, _OVERLAP) * _ramp(overlap - best_other, _LEAD)


def _ramp(values: Float, ends: tuple[float, float]) -> Float:
    return ((values - ends[0]) / (ends[1] - ends[0])).clip(0, 1)


def _to_judged_size(images: Tensor) -> Float:
    pixels = images.detach().float().cpu()
    if pixels.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        pixels = torch.nn.functional.interpolate(
            pixels, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True, align_corners=False
        )
    array: Float = pixels.numpy()
    return array


def _verdict(components: Components, shapes: Float, rows: slice, scene: Scene) -> Verdict:
    """Compares the objects of one picture, ``rows`` of all components, with its scene."""
    found = _describe(components, shapes, rows)
    wanted = [group for group in scene.groups for _ in range(group.count)]
    if not found:
        return Verdict(0.0, 0.0, 0.0, 0.0, 0.0, 0.0 if scene.relation else 1.0, found)
    color, confidence = components.color[rows], components.color_confidence[rows]
    has_color = np.stack(
        [confidence * (color == COLOR_NAMES.index(group.color)) for group in wanted], axis=1
    )  # (found, wanted)
    has_shape = np.stack([shapes[rows, SHAPES.index(group.shape)] for group in wanted], axis=1)
    both = 1 - COLOR_ONLY - SHAPE_ONLY
    credit = COLOR_ONLY * has_color + SHAPE_ONLY * has_shape + both * has_color * has_shape
    match = linear_sum_assignment(credit, maximize=True)  # min(found, wanted) pairs

    objects = float(credit[match].mean())
    count = min(len(found), len(wanted)) / max(len(found), len(wanted))
    if len(found) != len(wanted):
        count *= INEXACT_COUNT
    relation = 1.0
    if scene.relation is not None:
        place = dict(zip(match[1].tolist(), (rows.start + match[0]).tolist(), strict=True))
        pair = (place.get(0), place.get(len(wanted) - 1))
        relation = float(_stands(components, pair, scene.relation))
    return Verdict(
        score=objects * count * (relation + (1 - relation) * RELATION_BROKEN),
        color=float(has_color[match].mean()),
        shape=float(has_shape[match].mean()),
        objects=objects,
        count=count,
        relation=relation,
        found=found,
    )


def _stands(components: Components, pair: tuple[int | None, int | None], relation: str) -> bool:
    """Whether the first object of a pair stands to the second as told, by GenEval's rule."""
    first, second = pair
    if first is None or second is None:
        return False
    offset = components.center[first] - components.center[second]  # (y, x)
    margin = POSITION_MARGIN * (components.extent[first] + components.extent[second])
    offset = np.sign(offset) * np.maximum(np.abs(offset) - margin, 0)
    share = offset / max(float(np.linalg.norm(offset)), 1e-6)
    axis, sign = _RELATIONS[relation]
    return bool(sign * share[axis] > 0.5)


def _describe(components: Components, shapes: Float, rows: slice) -> tuple[FoundObject, ...]:
    return tuple(
        FoundObject(
            color=COLOR_NAMES[components.color[k]],
            shape=SHAPES[shapes[k].argmax()],
            color_credit=float(components.color_confidence[k]),
            shape_credit=float(shapes[k].max()),
            center=(float(components.center[k, 0]), float(components.center[k, 1])),
            area=float(components.area[k]),
        )
        for k in range(rows.start, rows.stop)
    )
