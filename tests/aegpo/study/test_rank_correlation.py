"""Rank correlations against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from aegpo.study.rank_correlation import (
    chance_level,
    chance_level_within,
    spearman,
    spearman_within,
)

NAN = math.nan


def test_spearman_by_hand() -> None:
    x, y = torch.tensor([1.0, 2, 3, 4]), torch.tensor([10.0, 30, 20, 400])
    assert spearman(x, y) == pytest.approx(1 - 6 * 2 / (4 * 15))  # two ranks off by one
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_missing_values_leave_pairs_out() -> None:
    x = torch.tensor([1.0, NAN, 2, 3, 4])
    y = torch.tensor([1.0, 100, 2, NAN, 0])
    assert spearman(x, y) == pytest.approx(-0.5)  # ranks 1 2 3 against 2 3 1


@pytest.mark.parametrize("x", [[1.0, 1, 1, 1], [1.0, 2, NAN, NAN], [NAN] * 4])
def test_what_has_no_ranks_has_no_correlation(x: list[float]) -> None:
    values = torch.tensor(x)
    assert math.isnan(spearman(values, torch.arange(4.0)))
    assert math.isnan(spearman(torch.arange(4.0), values))


def test_a_difference_between_categories_does_not_count_within_them() -> None:
    x = torch.tensor([1.0, 2, 3, 11, 12, 13])
    y = torch.tensor([3.0, 2, 1, 13, 12, 11])
    names = ["a", "a", "a", "b", "b", "b"]
    assert spearman(x, y) == pytest.approx(1 - 6 * (4 + 4 + 4 + 4) / (6 * 35))
    assert spearman_within(x, y, names) == pytest.approx(-1)


def test_a_category_of_one_is_left_out() -> None:
    x = torch.tensor([1.0, 2, 3, 0.0])
    y = torch.tensor([1.0, 2, 3, 9.0])
    assert spearman_within(x, y, ["a", "a", "a", "alone"]) == pytest.approx(1)
    assert math.isnan(spearman_within(x, y, ["a", "b", "c", "d"]))


def test_equal_values_inside_categories_have_no_ranks_left() -> None:
    x = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7])  # means of these round
    assert math.isnan(spearman_within(x, torch.arange(6.0), ["a"] * 3 + ["b"] * 3))


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        spearman(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="3 values need as many categories, got 2"):
        spearman_within(torch.ones(3), torch.ones(3), ["a", "b"])


def test_chance_level_by_hand() -> None:
    assert chance_level(26) == pytest.approx(0.392)
    assert chance_level(3) == 1.0
    assert chance_level(1) == 1.0


@pytest.mark.parametrize("sizes", [[2] * 12, [12, 6, 3, 3]], ids=str)
def test_chance_within_categories_is_passed_once_in_twenty(sizes: list[int]) -> None:
    names = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    means = torch.tensor([float(name) for name in names])  # categories differ, nothing else does
    draws = torch.randn(2, 300, 24, generator=torch.Generator().manual_seed(1)) + means
    passed = old = 0
    for x, y in zip(*draws, strict=True):
        found = abs(spearman_within(x, y, names))
        passed += found > chance_level_within(x, y, names, permutations=200)
        old += found > chance_level(24)
    assert passed / 300 == pytest.approx(0.05, abs=0.038)  # three standard errors
    if sizes == [2] * 12:
        assert old / 300 > 0.1  # what a level without categories lets through


def test_chance_within_one_category_is_that_of_all() -> None:
    x, y = torch.randn(2, 40, generator=torch.Generator().manual_seed(2))
    level = chance_level_within(x, y, ["a"] * 40)
    assert level == pytest.approx(chance_level(40), abs=0.03)
    assert level == chance_level_within(x, y, ["a"] * 40)
    assert math.isnan(chance_level_within(x, y, [str(number) for number in range(40)]))
    assert math.isnan(chance_level_within(torch.ones(40), y, ["a"] * 40))
