"""What a record of visits becomes, and what rules make of it, by hand."""

from __future__ import annotations

import math

import pytest

from aegpo.allocation import RunningSpread, SkipSilent, Visits


def after(*variances: float, decay: float = 0.5) -> Visits:
    visits = Visits()
    for variance in variances:
        visits = visits.after(variance, decay)
    return visits


def test_visits_by_hand() -> None:
    # The mean of the first two, then half of the past; a group without two scores says nothing.
    assert after(0.4, 0.2) == Visits(2, 0, pytest.approx(0.3))
    assert after(0.4, 0.2, math.nan, 0.0) == Visits(3, 1, pytest.approx(0.15))
    assert after(0.0, 0.0, 0.0) == Visits(3, 3, 0.0)
    assert after(0.0, 0.0, 0.1).silent == 0
    assert after(0.4, 0.2, decay=0.0).variance == 0.2
    assert after(0.3, 0.6, 0.9, decay=0.99).variance == pytest.approx(0.6)  # a plain mean so far


def test_ratings_by_hand() -> None:
    assert RunningSpread()(after(0.09, 0.09)) == pytest.approx(0.3)
    skip = SkipSilent(explore=0.5, floor=0.2)
    assert [skip(Visits(5, silent)) for silent in range(4)] == [1, 0.5, 0.25, 0.2]


@pytest.mark.parametrize(("explore", "floor"), [(0.0, 0.0), (0.5, 0.0), (0.5, 0.6), (1.1, 0.1)])
def test_chances_out_of_range_are_refused(explore: float, floor: float) -> None:
    with pytest.raises(ValueError, match=f"explore={explore} must be above 0"):
        SkipSilent(explore, floor)
