"""The ranks that other tests work on: what their deaths come to."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm_ranks import WarmRanks


@pytest.fixture
def ranks() -> Iterator[WarmRanks]:
    """Ranks of its own, which know no earlier death."""
    own = WarmRanks(limit=60.0)
    yield own
    own.close()


def die_at_first(folder: Path) -> str:
    """Rank one dies of a segmentation fault if it has not before."""
    if os.environ["RANK"] == "1" and not (folder / "died").exists():
        (folder / "died").touch()
        signal.raise_signal(signal.SIGSEGV)
    return os.environ["RANK"]


def test_one_death_by_a_signal_is_told_and_the_case_run_anew(
    ranks: WarmRanks, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="rank 1 ended with -11"):
        assert ranks.run(die_at_first, tmp_path) == ["0", "1"]
    assert ranks.run(die_at_first, tmp_path) == ["0", "1"]


def test_a_second_death_fails(ranks: WarmRanks) -> None:
    with pytest.warns(UserWarning), pytest.raises(AssertionError, match="ended with -11"):
        ranks.run(signal.raise_signal, signal.SIGSEGV)


def test_an_end_by_itself_is_not_forgiven(ranks: WarmRanks) -> None:
    with pytest.raises(AssertionError, match="ended with 3"):
        ranks.run(os._exit, 3)
