from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegpo.advantages import GroupRelative

NAN = float("nan")
SCALES = ("group", "global", "none")


@st.composite
def ragged(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of 1 to 4 groups of 1 to 6, shuffled, with gaps in the numbering."""
    group_sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    prompt = [3 * group for group, size in enumerate(group_sizes) for _ in range(size)]
    prompt = draw(st.permutations(prompt))
    value = st.integers(-40, 40).map(lambda number: number / 8)
    rewards = draw(st.lists(value, min_size=len(prompt), max_size=len(prompt)))
    return torch.tensor(rewards), torch.tensor(prompt)


def test_group_scale_by_hand() -> None:
    # Group 5: 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7. Group 2: 4, 0: mean 2, var 8.
    rewards = torch.tensor([1.0, 4.0, 2.0, 0.0, 6.0])
    prompt = torch.tensor([5, 2, 5, 2, 5])
    expected = torch.tensor([-2.0, 2.0, -1.0, -2.0, 3.0])
    std = torch.tensor([7.0, 8.0, 7.0, 8.0, 7.0]).sqrt()
    torch.testing.assert_close(
        GroupRelative(eps=0.5)(rewards, prompt).values, expected / (std + 0.5)
    )
    torch.testing.assert_close(GroupRelative(scale="none")(rewards, prompt).values, expected)
    # All five: mean 2.6, biased variance (2.56 + 1.96 + .36 + 6.76 + 11.56) / 5 = 4.64.
    torch.testing.assert_close(
        GroupRelative(scale="global", eps=0.0)(rewards, prompt).values, expected / math.sqrt(4.64)
    )


def test_missing_rewards_count_nowhere() -> None:
    rewards = torch.tensor([1.0, NAN, 2.0, 6.0, math.inf, 4.0, 0.0])
    prompt = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    for scale in SCALES:
        result = GroupRelative(scale=scale)(rewards, prompt)
        present = rewards.isfinite()
        assert result.missing == 2
        assert result.values[~present].tolist() == [0.0, 0.0]
        alone = GroupRelative(scale=scale)(rewards[present], prompt[present]).values
        torch.testing.assert_close(result.values[present], alone)


def test_groups_without_signal_are_exactly_zero() -> None:
    # 0.1 three times: their float mean need not be 0.1. Then one image, one left of two, none left.
    rewards = torch.tensor([0.1, 0.1, 0.1, 5.0, 2.0, NAN, NAN, NAN, 1.0, 2.0])
    prompt = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 4, 4])
    for scale in SCALES:
        result = GroupRelative(scale=scale, eps=0.0)(rewards, prompt)
        assert result.values[:8].tolist() == [0.0] * 8
        assert result.values[8] < 0 < result.values[9]
        assert result.zero_variance.tolist() == [True, True, True, True, False]
    silent = GroupRelative()(rewards, prompt).zero_variance
    assert silent.tolist() == [True, True, True, True, False]


def test_near_equal_rewards_of_large_mean_keep_their_order() -> None:
    rewards = torch.tensor([1000.0, 1000.0001, 999.9999], dtype=torch.float64)
    values = GroupRelative(eps=0.0)(rewards, torch.zeros(3, dtype=torch.int64)).values
    torch.testing.assert_close(values, torch.tensor([0.0, 1.0, -1.0]), atol=1e-5, rtol=0)


def test_clip() -> None:
    # One of 50 differs: it lies 49/50 / sqrt(1/50) = 6.93 deviations above the mean.
    rewards = torch.zeros(50)
    rewards[7] = 1.0
    prompt = torch.zeros(50, dtype=torch.int64)
    assert GroupRelative()(rewards, prompt).values.max() == 5.0
    assert GroupRelative(clip=2.0)(-rewards, prompt).values.min() == -2.0
    assert 6.9 < GroupRelative(clip=100.0)(rewards, prompt).values.max() < 6.94


@settings(deadline=None)
@given(ragged(), st.sampled_from(SCALES))
def test_mean_is_zero_in_every_group(case: tuple[torch.Tensor, torch.Tensor], scale: str) -> None:
    rewards, prompt = case
    values = GroupRelative(scale=scale, clip=1e6)(rewards, prompt).values
    for group in prompt.unique():
        assert abs(float(values[prompt == group].sum())) < 1e-4


@settings(deadline=None)
@given(ragged())
def test_group_scale_has_unit_deviation(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    rewards, prompt = case
    result = GroupRelative(eps=0.0)(rewards, prompt)
    for group, silent in zip(prompt.unique(), result.zero_variance, strict=True):
        values = result.values[prompt == group]
        if silent:
            assert values.abs().max() == 0
        else:
            assert float(values.std()) == pytest.approx(1, abs=1e-5)


@settings(deadline=None)
@given(ragged(), st.sampled_from([0.01, 3.0, 500.0]), st.sampled_from([-7.0, 0.0, 100.0]))
def test_group_and_global_do_not_see_scale_and_offset(
    case: tuple[torch.Tensor, torch.Tensor], factor: float, offset: float
) -> None:
    rewards, prompt = case
    rewards = rewards.double()
    for scale in ("group", "global"):
        torch.testing.assert_close(
            GroupRelative(scale=scale, eps=0.0)(factor * rewards + offset, prompt).values,
            GroupRelative(scale=scale, eps=0.0)(rewards, prompt).values,
            atol=1e-5,
            rtol=1e-5,
        )


@settings(deadline=None)
@given(ragged(), st.randoms(use_true_random=False), st.sampled_from(SCALES))
def test_order_of_the_images_does_not_matter(
    case: tuple[torch.Tensor, torch.Tensor], random, scale: str
) -> None:
    rewards, prompt = case
    order = list(range(len(rewards)))
    random.shuffle(order)
    torch.testing.assert_close(
        GroupRelative(scale=scale)(rewards[order], prompt[order]).values,
        GroupRelative(scale=scale)(rewards, prompt).values[order],
    )


@settings(deadline=None)
@given(ragged())
def test_other_groups_do_not_matter(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    rewards, prompt = case
    first = prompt == prompt.min()
    assume(not bool(first.all()))
    torch.testing.assert_close(
        GroupRelative()(rewards[first], prompt[first]).values,
        GroupRelative()(rewards, prompt).values[first],
    )


def test_no_images_at_all() -> None:
    result = GroupRelative()(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert result.values.shape == (0,) and result.zero_variance.shape == (0,)


def test_a_batch_of_missing_rewards_is_zero_for_every_scale() -> None:
    for scale in SCALES:
        values = GroupRelative(scale=scale)(torch.full((3,), NAN), torch.tensor([0, 0, 1])).values
        assert values.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"scale": "std"}, "scale='std'"), ({"clip": 0.0}, "clip=0.0"), ({"eps": -1.0}, "eps=-1.0")],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupRelative(**arguments)


def test_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        GroupRelative()(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
