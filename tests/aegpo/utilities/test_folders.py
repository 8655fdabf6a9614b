"""A folder appears as a whole or not at all, and what it replaces is never lost before that."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegpo.utilities.folders import check_new_folder, published


def fill(folder: Path, text: str, **settings: bool) -> None:
    with published(folder, **settings) as partial:
        assert list(partial.iterdir()) == []
        (partial / "file").write_text(text)
        assert not (folder / "file").exists() or (folder / "file").read_text() != text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("replace", [False, True])
def test_a_new_folder_appears_at_the_end(tmp_path: Path, replace: bool) -> None:
    folder = tmp_path / "deep" / "out"
    fill(folder, "one", replace=replace)
    assert (folder / "file").read_text() == "one"
    assert names(tmp_path / "deep") == ["out"]


def test_an_empty_one_is_filled_and_a_full_one_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    fill(folder, "one")
    with pytest.raises(OSError):
        fill(folder, "two")
    assert (folder / "file").read_text() == "one" and names(tmp_path) == ["out"]


def test_a_full_one_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, "one", replace=True)
    (folder / "other").write_text("of the first time")
    fill(folder, "two", replace=True)
    assert (folder / "file").read_text() == "two"
    assert names(folder) == ["file"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_an_exception_leaves_what_was_there(tmp_path: Path, replace: bool) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), published(folder, replace=replace):
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    fill(folder, "one", replace=replace)
    with pytest.raises(KeyboardInterrupt), published(folder, replace=replace) as partial:
        (partial / "file").write_text("two")
        raise KeyboardInterrupt
    assert (folder / "file").read_text() == "one" and names(tmp_path) == ["out"]


def test_the_old_one_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    fill(folder, "one", replace=True)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "out.partial":
            assert not folder.exists()
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="disk full"):
        fill(folder, "two", replace=True)
    assert (folder / "file").read_text() == "one" and names(tmp_path) == ["out"]


def test_what_a_killed_process_left_aside_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, "one", replace=True)
    folder.rename(tmp_path / "out.previous")  # killed between the two renames
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").touch()
    with pytest.raises(RuntimeError), published(folder, replace=True):
        assert (tmp_path / "out.previous" / "file").read_text() == "one"
        raise RuntimeError
    assert (folder / "file").read_text() == "one" and names(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    fill(tmp_path / "out", "one", replace=True)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "file").read_text() == "one"


def test_a_command_refuses_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_new_folder(str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(ValueError, match="is a file; give a new folder"):
        check_new_folder(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="exists and is not empty"):
        check_new_folder(str(tmp_path))
