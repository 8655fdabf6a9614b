"""Drawing scenes: areas, colors, places, and the independence of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from aegpo.shapes.prompts import COLORS, SHAPES, Scene, parse
from aegpo.shapes.render import SIZES, layout, render, render_batch, shape_mask
from aegpo.shapes.splits import SPLITS, split

# Areas of unit size, by geometry: the cross is two bars of 1 x 0.36, less their middle.
AREAS = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 2 * 0.36 - 0.36**2}
ALL_SCENES = [scene for name in SPLITS for scene in split(name)]


def brute_force(shape: str, size: float, center: tuple[float, float]) -> np.ndarray:
    """Coverage by counting 16 x 16 sample points in every pixel."""
    points = (np.arange(32 * 16) + 0.5) / 16
    x, y = (points[None] - center[0]) / size, (points[:, None] - center[1]) / size
    box = (abs(x) <= 0.5) & (abs(y) <= 0.5)
    inside = {
        "circle": x**2 + y**2 <= 0.25,
        "square": box,
        "triangle": box & (abs(x) <= (y + 0.5) / 2),
        "cross": box & ((abs(x) <= 0.18) | (abs(y) <= 0.18)),
    }[shape]
    return inside.reshape(32, 16, 32, 16).mean((1, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [8.0, 10.7, 16.0])
def test_masks_agree_with_counting_sample_points(shape: str, size: float) -> None:
    center = (14.3, 17.85)
    mask = shape_mask(shape, size, center)
    assert mask.shape == (32, 32)
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() == pytest.approx(1, abs=1e-5)
    assert mask.sum() == pytest.approx(AREAS[shape] * size**2, rel=0.04)
    difference = np.abs(mask - brute_force(shape, size, center))
    assert difference.max() < 0.4  # only at a tip is distance a poor stand-in for coverage
    assert difference.mean() < 0.003


def test_mask_coordinates_are_x_then_y_from_the_upper_left_corner() -> None:
    mask = shape_mask("square", 2, (3, 8), canvas=12)
    assert mask.shape == (12, 12)
    expected = np.zeros((12, 12))
    expected[7:9, 2:4] = 1
    np.testing.assert_array_equal(mask, expected)
    triangle = shape_mask("triangle", 10, (16, 16))
    assert triangle[12].sum() < triangle[19].sum()  # the tip points up


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="'star'; choose from circle"):
        shape_mask("star", 10, (16, 16))


def test_objects_lie_inside_and_apart_and_as_related() -> None:
    rng = np.random.default_rng(0)
    for scene in ALL_SCENES:
        size, center = layout(scene, rng)
        low, high = SIZES[scene.num_objects]
        assert ((size >= low) & (size <= high)).all()
        assert (center - size[:, None] / 2 >= 0).all()
        assert (center + size[:, None] / 2 <= 32).all()
        for a in range(len(size)):
            for b in range(a):
                assert abs(center[a] - center[b]).max() >= (size[a] + size[b]) / 2 + 0.99
        if scene.relation is not None:
            x, y = center[0] - center[1]
            along, across = {
                "left of": (-x, y),
                "right of": (x, y),
                "above": (-y, x),
                "below": (y, x),
            }[scene.relation]
            assert along >= size.mean()
            assert abs(across) < along


def hard_mask(image: np.ndarray, color: str) -> np.ndarray:
    """Pixels within 0.2 of a color (the two nearest colors are 0.6 apart)."""
    return np.linalg.norm(image - np.asarray(COLORS[color])[:, None, None], axis=0) < 0.2


def test_pictures_show_the_groups_in_color_number_and_place() -> None:
    for scene, picture in zip(ALL_SCENES, render_batch(ALL_SCENES, seed=1).numpy(), strict=True):
        centers = {}
        for color in COLORS:
            labels, number = ndimage.label(hard_mask(picture, color))
            wanted = [group.count for group in scene.groups if group.color == color]
            assert number == sum(wanted), (scene.text, color)
            if wanted:
                centers[color] = ndimage.center_of_mass(labels > 0)
        if scene.relation is not None:
            first, second = (centers[group.color] for group in scene.groups)
            y, x = first[0] - second[0], first[1] - second[1]
            clear = {"left of": -x, "right of": x, "above": -y, "below": y}[scene.relation]
            assert clear > 7


@pytest.mark.parametrize("shape", SHAPES)
def test_the_object_has_its_shape(shape: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        covered = hard_mask(render(parse(f"a blue {shape}"), rng), "blue")
        rows, columns = np.nonzero(covered)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        # Share of the bounding box filled: geometry, with the soft edge pixels left out.
        assert covered.sum() / (height * width) == pytest.approx(AREAS[shape], abs=0.13)


def test_pictures_are_near_white_with_jittered_colors() -> None:
    images = render_batch([parse("a green square")] * 64, seed=3)
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    green = torch.tensor(COLORS["green"])
    for image in images:
        inside = (image - green[:, None, None]).square().sum(0) < 0.01
        fill = image[:, inside].median(1).values
        assert (fill - green).abs().max() <= 0.0301
        background = image.flatten(1).median(1).values  # a square of 16 covers a quarter at most
        assert background.min() >= 0.97
    assert images.flatten(2).median(2).values.std(0).min() > 0.001


def test_a_row_depends_on_seed_row_and_scene_only() -> None:
    scenes = list(split("train")[::40])
    whole = render_batch(scenes, seed=5)
    assert torch.equal(render_batch(scenes[:3], seed=5), whole[:3])
    others: list[Scene] = [scenes[1], *scenes[1:]]
    assert torch.equal(render_batch(others, seed=5)[1:], whole[1:])
    assert not torch.equal(render_batch(scenes, seed=6), whole)
    same = render_batch([scenes[0]] * 2, seed=5)
    assert not torch.equal(same[0], same[1])
