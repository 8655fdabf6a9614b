"""The dense reward: truth on top, near misses below, graded everywhere."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch

from aegpo.rewards.shapes.match import (
    STRAY_TOLERANCE,
    ShapesMatch,
    color_similarity,
    line_similarity,
    match_objects,
    relation_factor,
    templates,
)
from aegpo.shapes.prompts import CATEGORIES, COLORS, Scene, near_misses, parse
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split

SCENES = [*split("train")[::9], *split("heldout")[::9], *split("hard")[::9]]


def score(images: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    return ShapesMatch()(images, [scene.text for scene in scenes], [{} for _ in scenes])


def square_map(*corners: tuple[int, int], size: int = 10) -> torch.Tensor:
    """(1, 1024) map of perfect squares with the given upper left (x, y)."""
    canvas = torch.zeros(32, 32)
    for x, y in corners:
        canvas[y : y + size, x : x + size] = 1
    return canvas.reshape(1, -1)


def one(result: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(result[0])


def test_ratios_worked_by_hand() -> None:
    match = match_objects(square_map((3, 5)), "square", 1)
    assert one(match) == pytest.approx(1)
    torch.testing.assert_close(match[1], torch.tensor([[8.0, 10.0]]))
    # A second object of the same size doubles the foreground: 100 / (200 + 100 - 100).
    assert one(match_objects(square_map((1, 1), (18, 18)), "square", 1)) == pytest.approx(1 / 2)
    # Half the color strength: the overlap is 50 of foreground 50 and template 100.
    assert one(match_objects(square_map((3, 5)) / 2, "square", 1)) == pytest.approx(1 / 2)
    assert one(match_objects(square_map((1, 1), (18, 18)), "square", 2)) == pytest.approx(1)
    # Two asked, one shown: the second template (8 x 8, the smallest) explains nothing, so all
    # together explain 100 of 164, and the templates' own ratios are 1 and 0.
    alone = one(match_objects(square_map((3, 5)), "square", 2))
    assert alone == pytest.approx(math.sqrt(100 / 164 * 0.5), abs=0.01)
    # Two asked, three shown: together 200 / 300; own 100 / 150 and 100 / 200.
    surplus = one(match_objects(square_map((1, 1), (18, 18), (1, 18)), "square", 2))
    assert surplus == pytest.approx(math.sqrt(200 / 300 * (100 / 150 + 100 / 200) / 2))


def test_templates_lie_inside_and_number_every_place() -> None:
    bank = templates("circle", torch.device("cpu"))
    assert len(bank.masks) == sum((33 - size) ** 2 for size in range(8, 17))
    assert bank.masks.max() <= 1
    torch.testing.assert_close(bank.area, bank.masks.sum(1))
    assert bank.area.min() > 0.7 * 16 * math.pi


def test_pixel_maps_worked_by_hand() -> None:
    red, green = torch.tensor(COLORS["red"]), torch.tensor(COLORS["green"])
    image = torch.ones(1, 3, 32, 32)
    image[0, :, 0, 0], image[0, :, 0, 1] = red, (red + 1) / 2
    image[0, :, 0, 2] = green
    similar, on_line = color_similarity(image, red[None])[0], line_similarity(image, red[None])[0]
    # Red is (0.1, 0.9, 0.9) short of white, so white is 1.63 away, and half-way 1.63 / 4.
    assert similar[0] == pytest.approx(1)
    assert similar[1] == pytest.approx(math.exp(-1.63 / 4 / 0.15), rel=1e-4)
    assert similar[3] == pytest.approx(math.exp(-1.63 / 0.15), rel=1e-4)
    assert on_line[[0, 1, 3]].tolist() == pytest.approx([1, 1, 1])
    assert on_line[2] < 0.01


def test_relation_factor_prefers_the_asked_side_and_is_never_flat() -> None:
    direction = torch.tensor([[-1.0, 0.0]])
    offsets = torch.tensor([[float(x), 0.0] for x in range(-20, 21)])
    factor = relation_factor(offsets, direction.expand(41, 2))
    assert (factor.diff() < 0).all()
    assert factor[0] > 0.99
    assert factor[-1] == pytest.approx(0.3, abs=0.01)
    slanted = relation_factor(torch.tensor([[-10.0, 9.0], [-10.0, 0.0]]), direction.expand(2, 2))
    assert slanted[0] < slanted[1]


@pytest.mark.parametrize("category", CATEGORIES)
def test_truth_scores_high(category: str) -> None:
    scenes = [scene for scene in SCENES if scene.category == category]
    scores = score(render_batch(scenes, seed=1), scenes)
    assert scores.mean() > 0.8
    assert scores.min() > 0.6
    assert scores.max() <= 1


def test_every_near_miss_scores_lower() -> None:
    truth, drawn = score(render_batch(SCENES, seed=2), SCENES), defaultdict(list)
    for scene, right in zip(SCENES, truth.tolist(), strict=True):
        for kind, miss in near_misses(scene).items():
            drawn[kind, scene.category].append((scene, miss, right))
    for (kind, category), cases in drawn.items():
        wrong = score(render_batch([m for _, m, _ in cases], seed=3), [s for s, _, _ in cases])
        right = torch.tensor([r for _, _, r in cases])
        least = {"color": 0.4, "relation": 0.4, "shape": 0.07, "count": 0.07}[kind]
        assert (right - wrong).mean() > least, (kind, category)
        assert (right > wrong).float().mean() > 0.75, (kind, category)


def test_a_surplus_object_of_another_color_costs() -> None:
    wanted = [parse("a red circle")] * 16
    shown = [parse("a red circle and a blue square")] * 16
    # Two-object pictures hold smaller circles, so compare with the same picture, blue painted out.
    images = render_batch(shown, seed=4)
    blue = line_similarity(images, torch.tensor(COLORS["red"]).expand(16, 3)) < 0.5
    clean = torch.where(blue.reshape(16, 1, 32, 32), 1.0, images)
    ratio = score(images, wanted) / score(clean, wanted)
    # A blue square of 9 to 13 pixels: 1 / (1 + area / 150) with an area of 81 to 169.
    assert ratio.max() < 1 / (1 + 60 / STRAY_TOLERANCE)
    assert ratio.min() > 1 / (1 + 200 / STRAY_TOLERANCE)


def test_blending_towards_noise_lowers_the_score_all_the_way() -> None:
    images = render_batch(SCENES, seed=5)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    means = [
        float(score(torch.lerp(images, noise, share), SCENES).mean())
        for share in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
    ]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.05


@pytest.mark.parametrize("noisiness", [0.3, 1.0])
def test_groups_of_noisy_pictures_always_have_spread(noisiness: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for scene in SCENES[::4]:
        images = torch.rand(12, 3, 32, 32, generator=generator)
        images = torch.lerp(torch.ones(()), images, noisiness)
        scores = score(images, [scene] * 12)
        assert scores.unique().numel() == 12
        assert scores.std() > 1e-3 * scores.mean() > 0


def test_rows_are_scored_by_their_own_prompt_and_alone() -> None:
    scenes = [
        parse("a red circle"),
        parse("two blue crosses"),
        parse("a red circle above a blue cross"),
        parse("a blue cross and two red circles"),
        parse("a red circle"),
    ]
    images = render_batch(scenes, seed=6)
    together = score(images, scenes)
    alone = torch.cat([score(images[i : i + 1], scenes[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    exchanged = score(images, [scenes[i] for i in (1, 0, 2, 3, 1)])
    assert (exchanged[[0, 1, 4]] < together[[0, 1, 4]] - 0.4).all()
    torch.testing.assert_close(exchanged[2:4], together[2:4], rtol=1e-4, atol=1e-5)


def test_other_resolutions_are_brought_to_the_canvas() -> None:
    scenes = SCENES[:8]
    images = render_batch(scenes, seed=7)
    enlarged = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(score(enlarged, scenes), score(images, scenes))


def test_a_broken_picture_is_missing_and_spoils_no_other() -> None:
    scenes = [parse("a red circle")] * 2
    images = render_batch(scenes, seed=8)
    whole = score(images, scenes)
    images[0, 1, 3, 3] = math.nan
    scores = score(images, scenes)
    assert scores[0].isnan()
    assert scores[1] == pytest.approx(float(whole[1]))


def test_an_empty_batch_and_unusable_arguments() -> None:
    reward = ShapesMatch()
    assert reward(torch.zeros(0, 3, 32, 32), [], []).shape == (0,)
    with pytest.raises(ValueError, match="2 images, but 1 prompts"):
        reward(torch.zeros(2, 3, 32, 32), ["a red circle"], [{}])
    with pytest.raises(ValueError, match="must be"):
        reward(torch.zeros(3, 32, 32), ["a red circle"], [{}])
    with pytest.raises(ValueError, match="cannot read"):
        reward(torch.zeros(1, 3, 32, 32), ["a dog"], [{}])
