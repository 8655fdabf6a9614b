"""Selections of images: the best subset by trying all, chances by counting them."""

from __future__ import annotations

import itertools

import pytest
import torch

from aegpo.noise import KeyedNoise
from aegpo.selection import AllImages, ByAdvantage, Extremes, Selection
from aegpo.selection.by_advantage import chances

NOISE = KeyedNoise(3)
NAN = float("nan")


@pytest.mark.parametrize("kind", ["normal", "binary", "skewed"])
def test_no_subset_has_more_variance_than_the_extremes(kind: str) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(60):
        n = int(torch.randint(4, 10, (1,), generator=draw))
        keep = int(torch.randint(2, n, (1,), generator=draw))
        values = torch.randn(n, generator=draw).double()
        if kind == "binary":
            values = (values > 0.4).double()
        if kind == "skewed":
            values = values.exp() ** 2
        chosen = Extremes(keep).weigh(values, 0, NOISE) > 0
        assert int(chosen.sum()) == keep
        best = max(
            float(values[list(subset)].var(correction=0))
            for subset in itertools.combinations(range(n), keep)
        )
        assert float(values[chosen].var(correction=0)) == pytest.approx(best, rel=1e-5, abs=1e-12)


def test_half_of_them_are_of_the_best() -> None:
    values = torch.tensor([3.0, 0.0, 9.0, 1.0, 2.0, -4.0]).double()
    even = Extremes(4, split="even").weigh(values, 0, NOISE)
    assert even.tolist() == [1, 1, 1, 0, 0, 1]
    assert Extremes(3, split="even").weigh(values, 0, NOISE).tolist() == [1, 0, 1, 0, 0, 1]


def test_ties_go_by_number_and_rounding_does_not_turn_them() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).double()
    assert Extremes(4).weigh(values, 0, NOISE).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert Extremes(2).weigh(torch.zeros(4).double(), 0, NOISE).tolist() == [1, 0, 0, 1]
    # 4 of each or 3 and 5 differ in the last bits only, which another number of ranks may turn.
    symmetric = torch.linspace(-1, 1, 16).double()
    shaken = symmetric * (1 + 1e-8 * torch.arange(16))
    one, other = (Extremes(8).weigh(values, 0, NOISE) for values in (symmetric, shaken))
    assert torch.equal(one, other) and one.tolist() == [1] * 4 + [0] * 8 + [1] * 4


def whole(selection: Selection, iteration: int = 0) -> torch.Tensor:
    """Ragged groups of 5, 2 and 4 images, one without signal, one with a failed reward."""
    advantages = torch.tensor([2.0, -1.0, NAN, -1.5, 0.5, 0.0, 0.0, 1.0, -1.0, 0.25, -0.25])
    row = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    weights = selection(advantages, row, torch.tensor([40, 7, 23]), NOISE.at(iteration))
    assert weights is not None and weights.dtype == torch.float32
    return weights


def test_groups_are_ragged_and_failed_rewards_are_never_chosen() -> None:
    assert whole(Extremes(2)).tolist() == [1, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0]
    assert whole(Extremes(9)).tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1]  # smaller: all
    skipping = whole(Extremes(2, skip_silent=True))
    assert skipping.tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0]
    assert whole(AllImages(skip_silent=True)).tolist() == [1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1]
    one = ByAdvantage(2, skip_silent=True)
    assert whole(one).gt(0).tolist()[5:7] == [False, False]


def test_a_group_without_a_score_has_no_image() -> None:
    nothing = torch.full((3,), NAN)
    for selection in (Extremes(2), ByAdvantage(2), AllImages(skip_silent=True)):
        weights = selection(nothing, torch.zeros(3).long(), torch.tensor([4]), NOISE)
        assert weights is not None and weights.tolist() == [0, 0, 0]
    empty = Extremes(2)(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).long(), NOISE)
    assert empty is not None and empty.shape == (0,)


def test_without_a_choice_nothing_is_weighed() -> None:
    advantages = torch.tensor([1.0, NAN])
    assert AllImages()(advantages, torch.zeros(2).long(), torch.tensor([4]), NOISE) is None
    row = torch.zeros(2).long()
    assert AllImages().trained_on(advantages, None, row) is advantages
    some, row = torch.tensor([2.0, 3.0, NAN]), torch.zeros(3).long()
    weighed = ByAdvantage(2).trained_on(some, torch.tensor([0.5, 0.0, 0.0]), row)
    torch.testing.assert_close(weighed, torch.tensor([1.0, NAN, NAN]), equal_nan=True)


@pytest.mark.parametrize(
    ("values", "keep", "expected"),
    [
        ([3.0, -1.0, 2.0, -2.0], 2, [0.75, 0.25, 0.5, 0.5]),
        ([9.0, 1.0, -1.0, 1.0], 2, [1.0, 1 / 3, 1 / 3, 1 / 3]),
        ([9.0, 8.0, -1.0, 1.0, 0.0], 3, [1.0, 1.0, 0.5, 0.5, 0.0]),
        ([1.0, 0.0, -2.0, 0.0], 3, [1.0, 0.0, 1.0, 0.0]),
        ([0.0, 0.0, 0.0, 0.0], 3, [0.75] * 4),
        ([0.0, 0.0], 3, [1.0, 1.0]),
    ],
)
def test_chances_by_hand(values: list[float], keep: int, expected: list[float]) -> None:
    found = chances(torch.tensor(values).double(), keep)
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_draws_keep_their_number_their_chances_and_the_mean() -> None:
    advantages = torch.tensor([2.0, -1.0, 0.1, -1.5, 0.5, 0.0, 0.7, -0.2]).float()
    row, index = torch.zeros(8).long(), torch.tensor([11])
    gradients = torch.tensor([1.0, 4.0, -9.0, 2.0, 0.3, 5.0, -1.0, 3.0])
    often, means, size = torch.zeros(8), [], 1500
    for iteration in range(size):
        weights = (selection := ByAdvantage(3))(advantages, row, index, NOISE.at(iteration))
        assert weights is not None and int((weights > 0).sum()) == 3
        often += weights > 0
        weighed = selection.trained_on(advantages, weights, row)
        kept = weighed.isfinite()
        assert float(weighed[kept].abs().max()) <= float(advantages.abs().mean()) + 1e-6
        means.append(float((weighed * gradients)[kept].mean()))
    expected = chances(advantages.double(), 3).float()
    assert float((often / size - expected).abs().max()) < 4 * (0.25 / size) ** 0.5
    found, target = torch.tensor(means), float((advantages * gradients).mean())
    assert abs(float(found.mean()) - target) < 4 * float(found.std()) / size**0.5


def test_draws_are_keyed_by_prompt_and_iteration() -> None:
    advantages = torch.randn(16, generator=torch.Generator().manual_seed(2))
    row = torch.zeros(16).long()

    def drawn(index: int, iteration: int) -> list[bool]:
        weights = ByAdvantage(4)(advantages, row, torch.tensor([index]), NOISE.at(iteration))
        assert weights is not None
        return (weights > 0).tolist()

    assert drawn(5, 2) == drawn(5, 2)
    assert len({tuple(drawn(index, 2)) for index in range(20)}) > 10
    assert len({tuple(drawn(5, iteration)) for iteration in range(20)}) > 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Extremes(1), "keep=1 must be at least 2"),
        (lambda: Extremes(4, split="top"), "split='top' is unknown; use 'variance' or 'even'"),
        (lambda: ByAdvantage(0), "keep=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_chosen_are_compared_with_each_other() -> None:
    # Two groups, one prompt after the other and mixed; a reward that failed, and a group that did.
    row = torch.tensor([0, 1, 0, 1, 0, 1, 0, 2, 0])
    advantages = torch.tensor([0.5, 1.0, -2.0, 2.0, 0.6, -3.0, 0.4, NAN, NAN])
    index = torch.tensor([8, 3, 5])
    for extremes, expected in [
        (Extremes(2, baseline="group"), [NAN, NAN, -2.0, 2.0, 0.6, -3.0, NAN, NAN, NAN]),
        (Extremes(2), [NAN, NAN, -1.3, 2.5, 1.3, -2.5, NAN, NAN, NAN]),
    ]:
        weights = extremes(advantages, row, index, NOISE)
        learned = extremes.trained_on(advantages, weights, row)
        torch.testing.assert_close(learned, torch.tensor(expected), equal_nan=True)
    nothing = Extremes(2).trained_on(torch.zeros(0), torch.zeros(0), torch.zeros(0).long())
    assert nothing.shape == (0,)


def test_an_unknown_baseline_is_told() -> None:
    with pytest.raises(ValueError, match="baseline='mean' is unknown; use 'chosen' or 'group'"):
        Extremes(2, baseline="mean")  # type: ignore[arg-type]
