"""The dense reward of the Shapes world: how much of the prompt can be laid over the picture?

For each object that the prompt asks for, the picture turns into a map of similarity with the
asked color, and anti-aliased templates of the asked shape, at all sizes and places, are laid over
the map. Every term is graded, so that even two pictures of noise differ: group-relative advantages
need spread inside each group.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.shapes.prompts import COLORS, SHAPES, parse
from aegpo.shapes.render import CANVAS, shape_mask

COLOR_WIDTH = 0.15
"""Squared RGB distance at which similarity with a color has fallen to 1/e."""

STRAY_WIDTH = 0.1
"""Squared RGB distance from the white-to-color line at which 1/e of a pixel counts as explained."""

STRAY_TOLERANCE = 150.0
"""Pixels of stray color that halve the score; a rendered object has about 30 to 250."""

TEMPLATE_SIZES = range(8, 17)
"""Sides of the templates' bounding boxes in pixels."""

EDGE_STEEPNESS = 8.0
"""Mean squared RGB distance of the colors from white (1.2) over `COLOR_WIDTH`."""

RELATION_FLOOR = 0.3
"""What a relation turned round leaves of the score."""

RELATION_MARGIN, RELATION_WIDTH = 2.0, 2.5
"""Pixels of clear offset at which the relation is half fulfilled, and the width of that ramp."""

_DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


class ShapesMatch(Reward):
    """Template-matching reward in [0, 1], graded everywhere; trained on, never the verdict.

    score = (mean over the prompt's groups of `match_objects`) * relation factor * stray factor,
    where the relation factor is `relation_factor` of the matched objects' centers (1 without a
    relation) and the stray factor is 1 / (1 + stray / 150) for `stray` pixels that no asked color
    explains, so that a surplus object of another color costs.

    The prompt is read from its text alone. Images of another size are resized to 32 x 32 by area
    interpolation; scores come back on the images' device.
    """

    name = "shapes_match"
    range = (0.0, 1.0)
    deterministic = True

    def setup(self, device: torch.device) -> None:
        """Draw the templates of all shapes on the device.

        Args:
            device: Where the images will be.
        """
        for shape in SHAPES:
            templates(shape, device)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score images against their prompts.

        Args:
            images: (N, 3, H, W) in [0, 1]; other values are clipped.
            prompts: N texts of the Shapes world.
            metadata: Not read.

        Returns:
            (N,) float32 in [0, 1]; NaN where a picture holds a non-finite pixel.

        Raises:
            ValueError: If the shapes or numbers do not fit, or a text is not of the world.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), but have shape {tuple(images.shape)}")
        if len(images) != len(prompts):
            raise ValueError(
                f"{len(images)} images, but {len(prompts)} prompts; give one for each image"
            )
        scenes = [parse(prompt) for prompt in prompts]
        pixels = _to_canvas(images)
        device = pixels.device

        # One item per group of each scene; items of the same shape and count are matched together.
        items = [(row, group) for row, scene in enumerate(scenes) for group in scene.groups]
        image_of = torch.tensor([row for row, _ in items], dtype=torch.long, device=device)
        color = torch.tensor([COLORS[group.color] for _, group in items], device=device)
        color = color.reshape(-1, 3)
        similarity = color_similarity(pixels[image_of], color)
        explained = line_similarity(pixels[image_of], color)
        forms: dict[tuple[str, int], list[int]] = defaultdict(list)
        for i, (_, group) in enumerate(items):
            forms[group.shape, group.count].append(i)
        scores = torch.zeros(len(items), device=device)
        centers = torch.zeros(len(items), 2, device=device)
        for (shape, count), members in forms.items():
            rows = torch.tensor(members, device=device)
            scores[rows], centers[rows] = match_objects(similarity[rows], shape, count)

        first = torch.tensor(
            [i for i, (row, _) in enumerate(items) if i == 0 or items[i - 1][0] != row],
            dtype=torch.long,
            device=device,
        )
        # In scenes of one group `last` is `first`.
        extra = [len(scene.groups) - 1 for scene in scenes]
        last = first + torch.tensor(extra, dtype=torch.long, device=device)
        total = (scores[first] + scores[last]) / 2
        stray = 1 - torch.maximum(explained[first], explained[last])
        total = total / (1 + stray.sum(1) / STRAY_TOLERANCE)

        related = [row for row, scene in enumerate(scenes) if scene.relation is not None]
        if related:
            rows = torch.tensor(related, device=device)
            directions = [_DIRECTIONS[str(scenes[row].relation)] for row in related]
            direction = torch.tensor(directions, dtype=torch.float32, device=device)
            total[rows] *= relation_factor(centers[first[rows]] - centers[last[rows]], direction)
        return total.where(images.isfinite().flatten(1).all(1), math.nan)


@dataclass(frozen=True)
class Templates:
    """All templates of one shape, lying fully inside the canvas.

    Args:
        masks: (K, 1024) similarity with its color that a perfectly drawn object would show.
        area: (K,) sum of each mask, in pixels.
    """

    masks: Tensor
    area: Tensor


@functools.lru_cache(maxsize=32)
def templates(shape: str, device: torch.device) -> Templates:
    """Draw the templates of a shape at sizes 8 to 16 and every whole-pixel place.

    Their edges are those of a similarity map, not of coverage: a pixel covered by the share a is
    (1 - a) of the way from the color to white, so its similarity is about exp(-8 (1 - a)^2).

    Args:
        shape: One of `SHAPES`.
        device: Where the templates are kept; drawn once for each device.

    Returns:
        About 4,000 templates.
    """
    drawn = []
    for size in TEMPLATE_SIZES:
        patch = shape_mask(shape, size, (size / 2, size / 2), canvas=size)
        patch = np.where(patch > 0, np.exp(-EDGE_STEEPNESS * (1 - patch) ** 2), 0)
        places = CANVAS - size + 1
        masks = np.zeros((places, places, CANVAS, CANVAS), dtype=np.float32)
        for y in range(places):
            for x in range(places):
                masks[y, x, y : y + size, x : x + size] = patch
        drawn.append(torch.from_numpy(masks.reshape(places * places, -1)))
    all_masks = torch.cat(drawn).to(device)
    return Templates(all_masks, all_masks.sum(1))


def color_similarity(images: Tensor, color: Tensor) -> Tensor:
    """exp(-||x - c||^2 / 0.15) at every pixel x.

    Args:
        images: (n, 3, 32, 32).
        color: (n, 3), the color c for each image.

    Returns:
        (n, 1024) in (0, 1].
    """
    distance = (images.flatten(2) - color[:, :, None]).square().sum(1)
    return torch.exp(-distance / COLOR_WIDTH)


def line_similarity(images: Tensor, color: Tensor) -> Tensor:
    """How near each pixel lies to the line from white to a color: background, edge or object.

    Args:
        images: (n, 3, 32, 32).
        color: (n, 3), the color for each image.

    Returns:
        (n, 1024) in (0, 1].
    """
    direction = color[:, :, None] - 1
    offset = images.flatten(2) - 1
    along = (offset * direction).sum(1, keepdim=True) / direction.square().sum(1, keepdim=True)
    distance = (offset - along.clamp(0, 1) * direction).square().sum(1)
    return torch.exp(-distance / STRAY_WIDTH)


def match_objects(similarity: Tensor, shape: str, count: int) -> tuple[Tensor, Tensor]:
    """Lay `count` templates over a similarity map, one after another.

    Each takes away what it explains. For one object the score is the best soft intersection over
    union, overlap / (foreground + template - overlap), the foreground being the map's total. For
    several it is the geometric mean of two: the same ratio of all templates together, in which a
    surplus object costs, and the mean of each template's own ratio with its share of the foreground
    that is left (1 at most), in which a missing object costs even where another is large.

    Args:
        similarity: (n, 1024) map in [0, 1].
        shape: One of `SHAPES`.
        count: Number of objects, at least 1.

    Returns:
        Scores (n,) in [0, 1], and the center (n, 2) of the first object found as (x, y) in pixels.
    """
    bank = templates(shape, similarity.device)
    foreground = similarity.sum(1)
    rest = similarity
    explained, area, own = (torch.zeros_like(foreground) for _ in range(3))
    center = similarity.new_zeros(len(similarity), 2)
    for k in range(count):
        overlap = rest @ bank.masks.T  # (n, K)
        # Against the whole foreground one large template over two small objects would win.
        share = rest.sum(1, keepdim=True) / (count - k)
        union = (bank.area - overlap).add_(share)
        # Beyond 1, where the object is larger than its share, the ratio still prefers the template
        # that takes it whole to one that leaves a rim for the next to feed on.
        ratio, best = torch.div(overlap, union, out=union).max(1)
        own = own + ratio.clamp(max=1) / count
        explained = explained + overlap.gather(1, best[:, None])[:, 0]
        area = area + bank.area[best]
        mask = bank.masks[best]
        if k == 0:
            center = _center(rest * mask + 1e-6 * mask)
        rest = rest * (1 - mask)
    together = explained / (foreground + area - explained)
    # For one object both factors are the same number; the root of their product gives it back.
    return (together * own).sqrt(), center


def relation_factor(offset: Tensor, direction: Tensor) -> Tensor:
    """Soft verdict on where one object lies as seen from another.

    A sigmoid of the offset along the asked direction, less half of the offset across it, less 2
    pixels, over 2.5 pixels; from 0.3 (turned round) to 1.

    Args:
        offset: (n, 2) center of the first object minus that of the second, (x, y) in pixels.
        direction: (n, 2) unit vector asked for, such as (-1, 0) for "left of".

    Returns:
        (n,) in [0.3, 1].
    """
    along = (offset * direction).sum(1)
    across = (offset * direction.flip(1)).sum(1).abs()
    clear = (along - across / 2 - RELATION_MARGIN) / RELATION_WIDTH
    return RELATION_FLOOR + (1 - RELATION_FLOOR) * torch.sigmoid(clear)


def _center(weight: Tensor) -> Tensor:
    """Weighted center (n, 2) of (n, 1024) maps, as (x, y) in pixels."""
    grid = weight.reshape(-1, CANVAS, CANVAS)
    axis = torch.arange(CANVAS, device=weight.device, dtype=weight.dtype) + 0.5
    x, y = (grid.sum(1) * axis).sum(1), (grid.sum(2) * axis).sum(1)
    return torch.stack((x, y), 1) / weight.sum(1, keepdim=True)


def _to_canvas(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1] at 32 x 32 pixels; non-finite ones become white."""
    pixels = images.detach().float().nan_to_num(1.0, 1.0, 0.0).clamp(0, 1)
    if pixels.shape[-2:] != (CANVAS, CANVAS):
        pixels = F.interpolate(pixels, (CANVAS, CANVAS), mode="area")
    return pixels
