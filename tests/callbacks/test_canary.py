"""The canary's statistics on images made by hand."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
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


class Painted(L.Callback):
    """Puts images by hand, of three prompts, in the place of those that were drawn."""

    def __init__(self) -> None:
        images = torch.stack([halves(), torch.zeros(3, 4, 4), halves(), halves()])
        broken = images.clone()
        broken[0, 0, 0, 0] = float("nan")  # one broken image costs no statistic its number
        self.images = [images, broken, images[:0]]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        images = self.images.pop(0)
        prompts = PromptBatch(["a", "b", "c"], torch.tensor([4, 9, 2]), [{}] * 3)
        if len(images) == 0:  # a rank without prompts
            prompts = PromptBatch([], torch.zeros(0, dtype=torch.int64), [])
        row = torch.tensor([0, 0, 1, 2])[: len(images)]
        tree = dataclasses.replace(pl_module.last.tree, images=images, row=row)
        sizes, schedule = torch.tensor([2, 1, 1])[: len(prompts)], pl_module.last.schedule
        rewards = torch.zeros(len(images))
        pl_module.last = Iteration(prompts, schedule, sizes, tree, rewards)


def logged(tmp_path: Path, folder: Path, rewards: list[Reward]) -> list[dict[str, float]]:
    """The canary's numbers of each of three iterations, as the log has them."""
    module = tiny_module(
        folder, num_steps=2, step_selector=FixedSteps([0]), allocator=UniformAllocator(2)
    )
    data = tiny_data(tmp_path, batch_size=2, batches_per_epoch=3)
    settings = {"logger": CSVLogger(tmp_path, "log", ""), "log_every_n_steps": 1}
    callbacks = [Painted(), Canary(rewards)]
    tiny_trainer(tmp_path, callbacks, max_epochs=1, limit_val_batches=0, **settings).fit(
        module, data
    )
    with (tmp_path / "log/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {name.removeprefix("canary/"): float(row[name]) for name in row if "canary/" in name}
        for row in rows
    ]


@pytest.mark.filterwarnings("ignore:reward '")
def test_the_callback_logs_means_over_images_and_groups(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    whole, broken, none = logged(tmp_path, tiny_sd3_folder, [Prompted(), Raises()])
    assert whole["edge_density"] == pytest.approx(3 / 4 / 6)
    assert whole["color_entropy"] == pytest.approx(0.75 * math.log(2))
    assert whole["group_diversity"] == pytest.approx(math.sqrt(1 / 8) / 3)
    assert whole["prompted"] == pytest.approx((0.25 + 0.25 + 0.75) / 3)
    assert whole["raises"] == pytest.approx(0.5) and whole["missing"] == 1 + 2

    assert broken["edge_density"] == pytest.approx(2 / 3 / 6)
    assert broken["color_entropy"] == pytest.approx(2 / 3 * math.log(2))
    assert broken["group_diversity"] == 0
    assert broken["raises"] == pytest.approx(0.5) and broken["missing"] == 3

    assert none["missing"] == 0 and math.isnan(none["edge_density"])


def test_names_that_would_share_a_tag_are_refused() -> None:
    taken = Raises()
    taken.name = "edge_density"
    for rewards in ([taken], [Raises(), Raises()]):
        with pytest.raises(ValueError, match="names must differ from each other and from edge_den"):
            Canary(rewards)
