"""Planted shortcuts are found, noise is not, and what prompts ask for is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from aegpo.rewards import GroupDiversity, JpegCompressibility, ShapesJudge, ShapesMatch
from aegpo.rewards.base import Reward
from aegpo.rewards.checks.image_statistics import STATISTICS, image_statistics
from aegpo.rewards.checks.samples import RewardSamples, drawings, shapes_samples
from aegpo.rewards.checks.shortcuts import check_shortcuts, within_prompts
from aegpo.utilities.findings import Finding

CPU = torch.device("cpu")
SAMPLES = drawings()
STATED = image_statistics(SAMPLES.images).numpy()
PROMPTS = np.array(SAMPLES.prompts)
NAMES = list(STATISTICS)


class Scored(Reward):
    """Scores of one's own, in the order of the samples."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return self.scores


def warned(reward: Reward, samples: RewardSamples = SAMPLES) -> dict[str, Finding]:
    findings = list(check_shortcuts(reward, samples, CPU))
    return {one.name: one for one in findings if one.status != "ok"}


def test_statistics_of_pictures_that_are_known() -> None:
    images = torch.zeros(4, 3, 4, 4)
    images[1, 0] = 1  # red
    images[2, :, :, 2:] = 1  # half white: one edge between the columns
    images[3] = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = dict(zip(NAMES, image_statistics(images).T, strict=True))
    assert found["brightness"][:3].tolist() == pytest.approx([0, 0.299, 0.5])
    assert found["contrast"][:3].tolist() == pytest.approx([0, 0, 0.5])
    assert found["saturation"][:3].tolist() == pytest.approx([0, 1, 0])
    assert found["edges"][:3].tolist() == pytest.approx([0, 0, 4 / 12 / 2])
    assert found["one color"].tolist() == pytest.approx([1, 1, 0.5, 1 / 16])
    for name in ("JPEG size", "PNG size"):
        assert float(found[name][3]) == float(found[name].max()) > float(found[name][0]) > 0


def test_one_prompt_is_spearmans_coefficient_and_several_are_pooled() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    x[:, 1] = np.round(x[:, 1])  # with ties
    found = within_prompts(y, x, np.zeros(40), draws=99)
    for place in range(2):
        assert found.correlation[place] == pytest.approx(spearmanr(x[:, place], y).statistic)
    assert np.isnan(found.low).all()  # no interval over one prompt
    # What differs between prompts alone is nothing, however strong it is there.
    group = np.repeat(np.arange(10), 4)
    between = within_prompts(y + 100 * group, x + 100 * group[:, None], group, draws=99)
    within = within_prompts(y, x, group, draws=99)
    assert between.correlation == pytest.approx(within.correlation)
    shuffled = rng.permutation(40)  # the order of the images does not matter
    again = within_prompts(y[shuffled], x[shuffled], group[shuffled], draws=99)
    assert again.correlation == pytest.approx(within.correlation)


def test_a_prompt_whose_scores_are_all_alike_says_nothing() -> None:
    rng = np.random.default_rng(1)
    x, y, group = rng.normal(size=(24, 1)), rng.normal(size=24), np.repeat(np.arange(6), 4)
    silent, silent_group = np.ones(8), np.repeat([7, 8], 4)
    all_of_them = within_prompts(
        np.concatenate([y, silent]),
        np.concatenate([x, rng.normal(size=(8, 1))]),
        np.concatenate([group, silent_group]),
    )
    alone = within_prompts(y, x, group)
    assert all_of_them.correlation == pytest.approx(alone.correlation)
    assert (all_of_them.images, all_of_them.prompts) == (24, 6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_reward_that_is_a_statistic_is_found_out(name: str, sign: int) -> None:
    scores = sign * torch.from_numpy(STATED[:, NAMES.index(name)])
    finding = warned(Scored(scores.float()))[name]
    assert finding.status == "warning"
    assert (
        f"this reward {'rises' if sign > 0 else 'falls'} with {name}: rank correl" in finding.detail
    )
    become = STATISTICS[name].more if sign > 0 else STATISTICS[name].less
    assert f"training may make images {become} whatever the prompt asks" in finding.detail


def test_a_shortcut_under_noise_is_found_with_an_interval_that_holds_it() -> None:
    rng = np.random.default_rng(2)
    bright = STATED[:, 0]
    inside = bright - np.array([bright[one == PROMPTS].mean() for one in PROMPTS])
    scores = inside / inside.std() + rng.normal(size=len(bright))
    found = within_prompts(scores, STATED, PROMPTS)
    assert found.p[0] < 0.01 and 0.4 < found.correlation[0] < 0.9
    assert found.low[0] < found.correlation[0] < found.high[0] and found.low[0] > 0.3


def test_noise_is_found_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(3)
    tries = 150
    hits = sum(
        bool((within_prompts(rng.normal(size=len(PROMPTS)), STATED, PROMPTS, 199).p < 0.05).any())
        for _ in range(tries)
    )
    assert 2 <= hits <= 16  # seven or eight are expected, for all seven statistics together


def test_intervals_cover_what_is_true_as_often_as_stated() -> None:
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(24), 8)
    true = within_prompts(*_correlated(rng, 1500, 8), draws=1).correlation[0]
    covered = 0
    for _ in range(60):
        found = within_prompts(*_correlated(rng, len(np.unique(group)), 8), draws=299)
        covered += bool(found.low[0] <= true <= found.high[0])
    assert covered >= 50


def _correlated(rng: np.random.Generator, prompts: int, images: int) -> tuple[Any, Any, Any]:
    """Scores that go with a statistic, more in some prompts than in others."""
    group = np.repeat(np.arange(prompts), images)
    x = rng.normal(size=(len(group), 1))
    slope = rng.uniform(0, 1.5, size=prompts)[group]
    return slope * x[:, 0] + rng.normal(size=len(group)), x, group


def test_what_the_bundled_rewards_lean_on() -> None:
    # On drawings that are all right the judge has nothing to choose between.
    (judged,) = check_shortcuts(ShapesJudge(), SAMPLES, CPU)
    assert judged.status == "ok" and "not looked for" in judged.detail
    assert "JPEG size" in warned(JpegCompressibility())
    assert "this reward falls with JPEG size" in warned(JpegCompressibility())["JPEG size"].detail
    list(check_shortcuts(GroupDiversity(), SAMPLES, CPU))
    assert set(warned(ShapesMatch())) <= set(NAMES)


def test_what_cannot_be_looked_at_is_said() -> None:
    class Raises(Scored):
        def __call__(self, *given: Any) -> Tensor:
            raise KeyError("no")

    (failed,) = check_shortcuts(Raises(torch.zeros(0)), SAMPLES, CPU)
    assert failed.status == "failed" and "KeyError" in failed.detail
    missing = torch.full((len(SAMPLES),), torch.nan)
    (few,) = check_shortcuts(Scored(missing), SAMPLES, CPU)
    assert few.status == "ok" and "0 images" in few.detail
    with pytest.raises(ValueError, match="1000 prompts were asked for; the Shapes world holds out"):
        shapes_samples(1000)
    assert len(set(drawings(40, 1).prompts)) == 40  # of categories that last
