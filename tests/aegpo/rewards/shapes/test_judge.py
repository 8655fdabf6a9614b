from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from aegpo.rewards.shapes.judge import ShapesJudge, Verdict, judge_images
from aegpo.rewards.shapes.segmentation import segment
from aegpo.shapes.prompts import CATEGORIES, COLORS, SHAPES, Group, Scene, near_misses, parse
from aegpo.shapes.render import render_batch, shape_mask
from aegpo.shapes.splits import split

SAMPLES = 200


def scenes_of(category: str, seed: int = 0, name: str = "train") -> list[Scene]:
    pool = [scene for scene in split(name) if scene.category == category]
    rng = np.random.default_rng(seed)
    return [pool[row] for row in rng.integers(len(pool), size=SAMPLES)]


def judged(image: Tensor, scene: Scene) -> Verdict:
    return judge_images(image[None], [scene])[0]


def mean_score(images: Tensor, scenes: list[Scene]) -> float:
    return float(np.mean([verdict.score for verdict in judge_images(images, scenes)]))


def paint(*objects: tuple[str, str, float, tuple[float, float]]) -> Tensor:
    """An image of (color, shape, size, (x, y)) on white."""
    image = np.ones((3, 32, 32), dtype=np.float32)
    for color, shape, size, center in objects:
        mask = shape_mask(shape, size, center)
        image = image * (1 - mask) + np.asarray(COLORS[color])[:, None, None] * mask
    return torch.from_numpy(image.astype(np.float32))


def draw_mask(mask: np.ndarray, color: str = "red") -> Tensor:
    value = np.asarray(COLORS[color])[:, None, None]
    return torch.from_numpy((1 - (1 - value) * mask).astype(np.float32))


# --- the bounds that make it a usable measure -------------------------------------------------


@pytest.mark.parametrize("category", CATEGORIES)
def test_rendered_truth_scores_high_and_another_prompt_low(category: str) -> None:
    scenes = scenes_of(category)
    others = scenes_of(category, seed=1)
    others = [
        near_misses(scene)["color"] if scene == other else other
        for scene, other in zip(scenes, others, strict=True)
    ]
    images = render_batch(scenes, seed=1)
    assert mean_score(images, scenes) > 0.97
    assert mean_score(images, others) < 0.30


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("name", ["heldout", "hard"])
def test_other_splits_score_high(category: str, name: str) -> None:
    if any(scene.category == category for scene in split(name)):
        scenes = scenes_of(category, name=name)
        assert mean_score(render_batch(scenes, seed=2), scenes) > 0.97


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_near_miss_lies_clearly_lower(category: str) -> None:
    scenes = scenes_of(category)
    images = render_batch(scenes, seed=3)
    truth = mean_score(images, scenes)
    wanted = {"color", "shape", "relation" if category == "relation" else "count"}
    assert set(near_misses(scenes[0])) == wanted
    for miss in wanted:
        wrong = [near_misses(scene)[miss] for scene in scenes]
        assert truth - mean_score(images, wrong) >= 0.25, miss
        # And the other way round: the picture is wrong, not the prompt.
        assert truth - mean_score(render_batch(wrong, seed=4), scenes) >= 0.25, miss


def blur(images: Tensor, std: float) -> Tensor:
    return torch.from_numpy(
        ndimage.gaussian_filter(images.numpy(), (0, 0, std, std), mode="nearest")
    )


def noise(images: Tensor, std: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def shift(images: Tensor, by: tuple[float, float]) -> Tensor:
    return torch.from_numpy(
        ndimage.shift(images.numpy(), (0, 0, *by), order=1, mode="nearest").astype(np.float32)
    )


def resample(images: Tensor, size: int) -> Tensor:
    small = interpolate(images, (size, size), mode="bilinear", antialias=True)
    return interpolate(small, (32, 32), mode="bilinear", antialias=True)


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "blur": lambda images: blur(images, 0.7),
    "noise": lambda images: noise(images, 0.05),
    "blur and noise": lambda images: noise(blur(images, 0.7), 0.05),
    "half a pixel": lambda images: shift(images, (0.5, -0.5)),
    "resampled": lambda images: resample(images, 24),
    "coarse levels": lambda images: (images * 16).round() / 16,
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_survives_what_an_autoencoder_does(corruption: str) -> None:
    for category in CATEGORIES:
        scenes = scenes_of(category, seed=5)[:100]
        images = CORRUPTIONS[corruption](render_batch(scenes, seed=5))
        assert mean_score(images, scenes) > 0.97, category


# --- clause by clause -------------------------------------------------------------------------


def test_verdict_names_what_it_sees() -> None:
    image = paint(("blue", "triangle", 12, (9.25, 8.5)), ("yellow", "cross", 10, (23.0, 22.5)))
    verdict = judged(image, parse("a blue triangle and a yellow cross"))
    assert verdict.score == pytest.approx(1.0)
    triangle, cross = verdict.found  # the larger one first
    assert (triangle.color, triangle.shape) == ("blue", "triangle")
    assert (cross.color, cross.shape) == ("yellow", "cross")
    # A triangle's centroid lies a sixth of its height below the middle of its box.
    assert triangle.center == pytest.approx((8.5 + 2, 9.25), abs=0.2)
    assert cross.center == pytest.approx((22.5, 23.0), abs=0.2)
    assert triangle.area == pytest.approx(72, rel=0.08)


@pytest.mark.parametrize(
    ("prompt", "color", "shape", "objects", "count", "relation", "score"),
    [
        ("a red circle above a green square", 1, 1, 1, 1, 1, 1),
        ("a red circle below a green square", 1, 1, 1, 1, 0, 0.4),
        ("a red circle left of a green square", 1, 1, 1, 1, 0, 0.4),
        ("a green square below a red circle", 1, 1, 1, 1, 1, 1),
        ("a red circle and a green square", 1, 1, 1, 1, 1, 1),
        ("a red circle and a green cross", 1, 0.5, 0.625, 1, 1, 0.625),
        ("a red circle and a blue square", 0.5, 1, 0.575, 1, 1, 0.575),
        # Two of three are there: ratio 2/3, times 0.75 for being wrong at all.
        ("two red circles and a green square", 1, 1, 1, 0.5, 1, 0.5),
        ("a red circle", 1, 1, 1, 0.375, 1, 0.375),
    ],
)
def test_clauses_by_hand(
    prompt: str,
    color: float,
    shape: float,
    objects: float,
    count: float,
    relation: float,
    score: float,
) -> None:
    image = paint(("red", "circle", 11, (14, 8)), ("green", "square", 11, (18, 23)))
    verdict = judged(image, parse(prompt))
    clauses = (verdict.color, verdict.shape, verdict.objects, verdict.count, verdict.relation)
    assert clauses == pytest.approx((color, shape, objects, count, relation), abs=1e-6)
    assert verdict.score == pytest.approx(score, abs=1e-6)


def test_an_empty_picture_scores_nothing() -> None:
    for prompt in ("a red circle", "a red circle above a green square"):
        verdict = judged(torch.ones(3, 32, 32), parse(prompt))
        assert (verdict.score, verdict.found) == (0.0, ())


def test_specks_are_no_objects() -> None:
    image = paint(("red", "circle", 12, (10, 10)))
    image[:, 26:29, 26:29] = torch.tensor(COLORS["blue"])[:, None, None]
    assert judged(image, parse("a red circle")).score == pytest.approx(1.0)
    image[:, 25:29, 25:29] = torch.tensor(COLORS["blue"])[:, None, None]
    assert judged(image, parse("a red circle")).count == pytest.approx(0.375)


def test_a_blob_has_its_color_but_no_shape() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 15.5
    blobs = []
    for _ in range(60):
        field = ndimage.gaussian_filter(rng.standard_normal((32, 32)), 2.5)
        field = field / field.std() - (np.hypot(y, x) / 6) ** 2 + 1
        blobs.append(draw_mask(ndimage.gaussian_filter((field > 0).astype(float), 0.6)))
    for shape in SHAPES:
        scene = Scene((Group("red", shape),))
        verdicts = [v for v in judge_images(torch.stack(blobs), [scene] * len(blobs)) if v.found]
        assert np.mean([verdict.shape for verdict in verdicts]) < 0.25
        assert np.mean([verdict.color for verdict in verdicts]) > 0.95


def test_long_ellipse_is_no_circle() -> None:
    y, x = np.mgrid[:32, :32] - 15.5
    ellipse = np.clip(6 - np.hypot(x / 1.3, y * 1.3) + 0.5, 0, 1)
    assert judged(draw_mask(ellipse), parse("a red circle")).shape < 0.1
    circle = np.clip(6 - np.hypot(x, y) + 0.5, 0, 1)
    assert judged(draw_mask(circle), parse("a red circle")).shape == pytest.approx(1.0)


@pytest.mark.parametrize("hue", [(0.95, 0.48, 0.1), (0.1, 0.1, 0.1), (0.5, 0.35, 0.2)])
def test_a_color_outside_the_palette_earns_nothing(hue: tuple[float, float, float]) -> None:
    mask = shape_mask("square", 12, (16, 16))
    image = torch.from_numpy((1 - (1 - np.asarray(hue)[:, None, None]) * mask).astype(np.float32))
    for color in COLORS:
        verdict = judged(image, Scene((Group(color, "square"),)))
        assert verdict.color < 0.3
        assert verdict.shape > 0.9


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5])
def test_neighbors_joined_by_blur_are_counted_apart(phase: float) -> None:
    pair = paint(
        ("cyan", "square", 9, (10.5 + phase, 16)), ("cyan", "square", 9, (20.5 + phase, 16.3))
    )
    image = blur(pair[None], 0.8)
    assert len(segment(image.numpy()).regions) == 1  # a pixel apart: the blur makes them one region
    verdict = judged(image[0], parse("two cyan squares"))
    assert len(verdict.found) == 2
    assert verdict.score > 0.9


# --- the reward around it ---------------------------------------------------------------------


def test_reward_equals_the_verdicts_and_ignores_the_rest_of_the_batch() -> None:
    scenes = [scenes_of(category)[0] for category in CATEGORIES] * 2
    images = render_batch(scenes, seed=9)
    images[4:] = images[4:].flip(0)  # pictures of other prompts
    prompts = [scene.text for scene in scenes]
    judge = ShapesJudge()
    scores = judge(images, prompts, [{} for _ in prompts])
    alone = [judged(image, scene).score for image, scene in zip(images, scenes, strict=True)]
    assert (scores.dtype, scores.shape) == (torch.float32, (8,))
    torch.testing.assert_close(scores, torch.tensor(alone))
    assert judge.range == (0.0, 1.0)
    assert scores.min() >= 0 and scores.max() <= 1


@pytest.mark.parametrize("size", [16, 64, 100])
def test_other_resolutions_are_resized(size: int) -> None:
    scenes = scenes_of("single")[:50]
    images = render_batch(scenes, seed=10)
    resized = interpolate(images, (size, size), mode="bilinear", antialias=True)
    assert mean_score(resized, scenes) > 0.97


def test_non_finite_pictures_are_missing() -> None:
    scenes = scenes_of("single")[:3]
    images = render_batch(scenes, seed=11)
    images[0, 0, 0, 0] = math.nan
    images[2, 1, 3, 3] = math.inf
    scores = ShapesJudge()(images, [scene.text for scene in scenes], [{}] * 3)
    assert scores.isnan().tolist() == [True, False, True]
    assert scores[1] == pytest.approx(1.0)


def test_empty_batch() -> None:
    assert ShapesJudge()(torch.zeros(0, 3, 32, 32), [], []).shape == (0,)


def test_bad_input_is_named() -> None:
    scene = parse("a red circle")
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*\(2, 1, 32, 32\)"):
        judge_images(torch.zeros(2, 1, 32, 32), [scene] * 2)
    with pytest.raises(ValueError, match="2 images, but 1 prompts"):
        judge_images(torch.zeros(2, 3, 32, 32), [scene])
    with pytest.raises(ValueError, match="purple"):
        ShapesJudge()(torch.zeros(1, 3, 32, 32), ["a purple circle"], [{}])


def test_verdict_is_plain_data() -> None:
    verdict = judged(paint(("red", "circle", 12, (16, 16))), parse("a red circle"))
    assert isinstance(verdict, Verdict)
    assert all(type(getattr(verdict, name)) is float for name in ("score", "color", "count"))
