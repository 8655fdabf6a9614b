"""A push goes to a server on this machine that answers over HTTP as the hub does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from local_hub import local_hub

from aegpo.export.hub import check_hub_target, push


def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\nlibrary_name: diffusers\n---\n# A card\n")
    (tmp_path / "mine.safetensors").write_bytes(bytes(range(200)))
    return tmp_path


def test_a_folder_is_sent_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub(monkeypatch) as hub:
        address = push(folder(tmp_path), "owner/name", private=True)
    assert address.endswith("/owner/name/commit/1")
    assert hub.files == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    path, token, body = hub.asked[0]
    assert path == "/api/repos/create" and token == "Bearer hf_mine"
    made = json.loads(body)
    assert made["name"] == "name" and made["organization"] == "owner"
    assert made.get("private") is True or made.get("visibility") == "private"


def test_a_refusal_is_one_line_and_leaves_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        local_hub(monkeypatch) as hub,
        pytest.raises(ValueError, match=r"written and checked, but was not pushed") as error,
    ):
        hub.refuses = True
        push(folder(tmp_path), "owner/name", private=False)
    assert "\n" not in str(error.value) and "hf upload owner/name" in str(error.value)
    assert not hub.files and (tmp_path / "mine.safetensors").stat().st_size == 200


def test_who_is_not_logged_in_hears_it_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("aegpo.export.hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="log in with `hf auth login`"):
        check_hub_target("owner/name")
    with pytest.raises(ValueError, match="is no hub id; give owner/name"):
        check_hub_target("name")
