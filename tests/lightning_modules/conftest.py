"""Fixtures of the tests that run the command line, or several ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm_ranks import WarmRanks


@pytest.fixture(scope="session")
def pair() -> Iterator[WarmRanks]:
    """Two ranks that wait for work; they are started when they get some."""
    ranks = WarmRanks()
    yield ranks
    ranks.close()


@pytest.fixture
def user_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is the current one: user_module.py and base.yaml."""
    from user_folder import BASE, USER_MODULE

    (folder / "user_module.py").write_text(USER_MODULE)
    (folder / "base.yaml").write_text(BASE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "user_module", raising=False)
    return folder
