"""The canary's statistics on images made by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.group import group_diversity
from aegpo.training import Iteration
from callbacks.canary import Canary, color_entropy, edge_density


def halves() -> Tensor:
    """Black on the left, white on the right, 4 x 4."""
    image = torch.zeros(3, 4, 4)
    image[..., 2:] = 1
    return image


def test_edge_density_counts_steps_in_both_directions() -> None:
    stripes = torch.zeros(3, 4, 4)
    stripes[:, ::2] = 0.5
    images = torch.stack([torch.full((3, 4, 4), 0.3), halves(), stripes])
    # One of three neighbors differs by 1 across; every neighbor differs by 0.5 down.
    torch.testing.assert_close(edge_density(images), torch.tensor([0, 1 / 6, 0.25]))


def test_color_entropy_is_that_of_the_shares_of_colors() -> None:
    thirds = torch.zeros(3, 1, 4)
    thirds[0, 0] = torch.tensor([0.0, 0.0, 0.3, 1.0])  # of four levels: 0, 0, 1 and 3
    one_level = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.249
    assert float(color_entropy(halves()[None])) == pytest.approx(math.log(2))
    expected = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert float(color_entropy(thirds[None])) == pytest.approx(expected)
    assert float(color_entropy(one_level[None])) == 0.0
    assert float(color_entropy(torch.full((1, 3, 2, 2), 1.5))) == 0.0  # beyond 1 is white


def test_group_diversity_is_the_rms_distance_from_the_group_s_mean() -> None:
    black, white = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    images = torch.stack([black, white, white, white, black, white])
    prompt = torch.tensor([7, 7, 2, 2, 2, 5])
    # Groups by number: (white, white, black) sqrt(2)/3, one image 0, (black, white) 1/2.
    expected = torch.tensor([math.sqrt(2) / 3, 0.0, 0.5])
    torch.testing.assert_close(group_diversity(images, prompt), expected)


class Prompted(Reward):
    """Scores by prompt alone, and fails for one of them."""

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return torch.tensor([{"a": 0.25, "b": float("nan"), "c": 0.75}[text] for text in prompts])


class Raises(Reward):
    """Cannot read one prompt."""

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        if "a" in prompts:
            raise RuntimeError("unreadable")
        return torch.full((len(prompts),), 0.5)


@pytest.mark.filterwarnings("ignore:reward '")
def test_the_callback_logs_means_over_images_and_groups() -> None:
    logged: dict[str, float] = {}
    images = torch.stack([halves(), torch.zeros(3, 4, 4), halves(), halves()])
    row = torch.tensor([0, 0, 1, 2])
    batch = PromptBatch(["a", "b", "c"], torch.tensor([4, 9, 2]), [{}] * 3)

    def run(canary: Canary) -> None:
        tree: Any = SimpleNamespace(images=images, row=row)
        schedule: Any = None
        last = Iteration(batch, schedule, torch.tensor([2, 1, 1]), tree, torch.zeros(4))
        module = SimpleNamespace(
            last=last, log_dict=lambda metrics, rank_zero_only: logged.update(metrics)
        )
        canary.on_train_batch_end(None, module, None, None, 0)

    run(Canary([Prompted()]))
    assert logged["canary/edge_density"] == pytest.approx(3 / 4 / 6)
    assert logged["canary/color_entropy"] == pytest.approx(0.75 * math.log(2))
    assert logged["canary/group_diversity"] == pytest.approx(math.sqrt(1 / 8) / 3)
    assert logged["canary/prompted"] == pytest.approx((0.25 + 0.25 + 0.75) / 3)
    assert logged["canary/missing"] == 1

    images[0, 0, 0, 0] = float("nan")  # one broken image costs no statistic its number
    run(Canary([Prompted(), Raises()]))
    assert logged["canary/edge_density"] == pytest.approx(2 / 3 / 6)
    assert logged["canary/color_entropy"] == pytest.approx(2 / 3 * math.log(2))
    assert logged["canary/group_diversity"] == 0
    assert logged["canary/raises"] == pytest.approx(0.5) and logged["canary/missing"] == 3

    images, row = images[:0], torch.zeros(0, dtype=torch.int64)
    batch = PromptBatch([], torch.zeros(0, dtype=torch.int64), [])
    run(Canary([Raises()]))  # a rank without prompts
    assert logged["canary/missing"] == 0 and math.isnan(logged["canary/edge_density"])


def test_names_that_would_share_a_tag_are_refused() -> None:
    taken = Raises()
    taken.name = "edge_density"
    for rewards in ([taken], [Raises(), Raises()]):
        with pytest.raises(ValueError, match="names must differ from each other and from edge_den"):
            Canary(rewards)
