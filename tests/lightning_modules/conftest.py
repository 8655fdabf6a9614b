"""Fixtures of the tests that run the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def user_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is the current one: user_module.py and base.yaml."""
    from user_folder import BASE, USER_MODULE

    (folder / "user_module.py").write_text(USER_MODULE)
    (folder / "base.yaml").write_text(BASE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "user_module", raising=False)
    return folder
