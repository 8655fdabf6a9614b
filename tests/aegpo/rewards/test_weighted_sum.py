from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import aegpo.rewards
from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.weighted_sum import WeightedSum


class Given(Reward):
    """Returns what it was made with."""

    def __init__(
        self,
        scores: list[float],
        name: str = "given",
        range: tuple[float, float] | None = None,
        deterministic: bool = True,
    ) -> None:
        self.scores = torch.tensor(scores, dtype=torch.float64)
        self.name = name
        self.range = range
        self.deterministic = deterministic
        self.device: torch.device | None = None

    def setup(self, device: torch.device) -> None:
        self.device = device

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return self.scores


def score(reward: Reward, n: int = 3) -> Tensor:
    return reward(torch.zeros(n, 3, 2, 2), ["p"] * n, [{}] * n)


def scores(reward: Reward, n: int = 3) -> Scores:
    return reward.with_parts(torch.zeros(n, 3, 2, 2), ["p"] * n, [{}] * n)


def test_a_reward_without_parts_is_its_total() -> None:
    plain = scores(Given([1, 2, 3]))
    assert plain.total.tolist() == [1, 2, 3] and plain.parts == {}


def test_sums_and_tells_the_unweighted_parts() -> None:
    total = WeightedSum([Given([1, 2, 3], "one"), Given([10, 0, -10], "ten")], [2.0, -0.5])
    result = score(total)
    assert result.tolist() == [-3.0, 4.0, 11.0] and result.dtype == torch.float32
    assert torch.equal(scores(total).total, result)
    assert {name: part.tolist() for name, part in scores(total).parts.items()} == {
        "one": [1, 2, 3],
        "ten": [10, 0, -10],
    }


def test_weights_are_one_by_default() -> None:
    assert score(WeightedSum([Given([1, 2, 3]), Given([1, 1, 1])])).tolist() == [2, 3, 4]


def test_a_missing_part_makes_the_sum_missing_even_at_weight_zero() -> None:
    nan = float("nan")
    total = WeightedSum([Given([1, nan, 3], "a"), Given([nan, 5, 6], "b")], [1.0, 0.0])
    assert score(total).isnan().tolist() == [True, True, False]
    assert scores(total).parts["b"].isnan().tolist() == [True, False, False]


def test_equal_names_are_numbered_without_collision() -> None:
    names = ["jpeg", "jpeg_2", "jpeg", "jpeg"]
    total = WeightedSum([Given([value] * 3, name) for value, name in enumerate(names)])
    assert {name: part[0].item() for name, part in scores(total).parts.items()} == {
        "jpeg": 0,
        "jpeg_2": 1,
        "jpeg_3": 2,
        "jpeg_4": 3,
    }


def test_range_and_determinism_follow_from_the_parts() -> None:
    unit, wide = Given([0], range=(0, 1)), Given([0], range=(-2, 3), deterministic=False)
    total = WeightedSum([unit, wide], [2.0, -1.0])
    assert total.range == (-3.0, 4.0)  # 2 [0, 1] + [-3, 2]
    assert total.deterministic is False
    assert WeightedSum([unit, Given([0])]).range is None
    assert WeightedSum([unit, Given([0])], [1.0, 0.0]).range == (0.0, 1.0)
    assert WeightedSum([unit]).deterministic is True


def test_setup_reaches_all_parts() -> None:
    parts = [Given([0], "a"), Given([0], "b")]
    WeightedSum(list(parts)).setup(torch.device("cpu"))
    assert [part.device for part in parts] == [torch.device("cpu")] * 2


@pytest.mark.parametrize(
    ("num_rewards", "weights", "message"),
    [
        (0, [], "at least one reward"),
        (2, [0.0, 0.0], r"weights=\[0.0, 0.0\] are all 0"),
        (2, [1.0], "2 rewards and 1 weights"),
        (1, [float("nan")], "finite"),
    ],
)
def test_refuses(num_rewards: int, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSum([Given([0]) for _ in range(num_rewards)], weights)


def test_a_part_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"part 'short' returned shape \(2,\) for 3 images"):
        score(WeightedSum([Given([1, 2, 3], "long"), Given([1, 2], "short")]))


def test_package_offers_the_shapes_rewards_lazily() -> None:
    assert {"ShapesJudge", "ShapesMatch"} <= set(aegpo.rewards.__all__)
    from aegpo.rewards.shapes.match import ShapesMatch

    assert aegpo.rewards.ShapesMatch is ShapesMatch
    with pytest.raises(AttributeError, match="NoSuchReward"):
        _ = aegpo.rewards.NoSuchReward
