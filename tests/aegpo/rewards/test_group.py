from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aegpo.rewards.group import GroupDiversity, GroupReward
from aegpo.rewards.jpeg import JpegCompressibility
from aegpo.rewards.weighted_sum import WeightedSum


class Rank(GroupReward):
    """Place of the image in its group by brightness."""

    def score_group(self, images: Tensor, prompt: str, metadata: dict[str, Any]) -> Tensor:
        self.seen = [*getattr(self, "seen", []), (prompt, len(images), metadata["n"])]
        return images.flatten(1).mean(1).argsort().argsort().float()


def test_groups_are_found_wherever_their_rows_stand() -> None:
    brightness = torch.tensor([0.5, 0.1, 0.2, 0.9, 0.3])
    images = brightness[:, None, None, None].expand(-1, 3, 4, 4)
    prompts = ["a", "b", "a", "b", "a"]
    rank = Rank()
    scores = rank(images, prompts, [{"n": row} for row in range(5)])
    assert scores.tolist() == [2, 0, 0, 1, 1] and scores.dtype == torch.float32
    assert rank.seen == [("a", 3, 0), ("b", 2, 1)]


def test_diversity_is_the_mean_distance_to_the_others() -> None:
    images = torch.zeros(3, 3, 32, 32)
    images[1], images[2] = 1.0, 0.5
    scores = GroupDiversity()(images, ["a"] * 3, [{}] * 3)
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.75, 0.5]))
    alone = GroupDiversity()(images, ["a", "a", "b"], [{}] * 3)
    assert alone[:2].tolist() == [1, 1] and alone[2].isnan()
    with pytest.raises(ValueError, match="size=0"):
        GroupDiversity(size=0)


def test_a_sum_with_a_groupwise_part_is_groupwise() -> None:
    both = WeightedSum([JpegCompressibility(), GroupDiversity()], [1.0, 0.0])
    assert both.groupwise and not WeightedSum([JpegCompressibility()]).groupwise
    assert both.part_weights == {"jpeg_compressibility": 1.0}, "a watched part does not count"
