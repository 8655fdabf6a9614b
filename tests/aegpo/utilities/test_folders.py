"""A folder appears as a whole or not at all, and what it replaces is never lost before that."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aegpo.utilities.folders import check_folder, check_new_folder, published


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


def test_what_a_library_wrote_for_its_owner_alone_is_like_any_other_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with published(tmp_path / "out") as partial:
            (partial / "weights").touch(0o600)  # as safetensors does
            (partial / "program").touch(0o755)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert modes == {"weights": 0o640, "program": 0o750}


def test_an_empty_one_is_filled_and_a_full_one_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    fill(folder, "one")
    with pytest.raises(OSError):
        fill(folder, "two")
    assert (folder / "file").read_text() == "one" and names(tmp_path) == ["out"]


def test_a_full_one_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with published(folder, replace=True) as partial:
        (partial / "part").mkdir()
        (partial / "part" / "other").write_text("of the first time")
    fill(folder, "two", replace=True)
    assert (folder / "file").read_text() == "two"
    assert names(folder) == [".written", "file"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("other", ["mine.txt", "part/mine.txt", ".written"])
def test_what_was_not_written_by_it_is_never_deleted(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "out"
    if other != ".written":
        fill(folder, "one", replace=True)
    for path in (folder / other, *(tmp_path / f"out{end}/mine" for end in (".new", ".old"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for end in (".partial", ".previous", f".{'0' * 32}.partial"):
        (tmp_path / f"out{end}").mkdir()
        (tmp_path / f"out{end}" / "mine").write_text("mine")
    (folder / "second.txt").write_text("mine")
    before = {path for path in tmp_path.rglob("*") if path.name != "file"}
    with pytest.raises(FileExistsError, match="in it was not written by this; give another"):
        fill(folder, "two", replace=True)
    assert {path for path in tmp_path.rglob("*") if path.name != "file"} == before
    assert (folder / other).read_text() == "mine"


def test_a_file_that_came_while_it_was_filled_is_not_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, "one", replace=True)
    with pytest.raises(FileExistsError), published(folder, replace=True):
        (folder / "mine").touch()
    assert names(folder) == [".written", "file", "mine"] and names(tmp_path) == ["out"]


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
        if path.suffix == ".partial":
            assert not folder.exists()
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="disk full"):
        fill(folder, "two", replace=True)
    assert (folder / "file").read_text() == "one" and names(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from aegpo.utilities.folders import published
rename = Path.rename
def kill_the_second(path, target):
    if path.suffix == ".partial":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = kill_the_second
with published(Path(sys.argv[1]), replace=True) as partial:
    (partial / "file").write_text("two")
"""


def test_what_a_killed_process_left_aside_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, "one", replace=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)])
    assert killed.returncode == -signal.SIGKILL and not folder.exists()
    with pytest.raises(RuntimeError), published(folder, replace=True):
        assert (folder / "file").read_text() == "one"
        raise RuntimeError
    assert (folder / "file").read_text() == "one"
    fill(folder, "three", replace=True)
    assert (folder / "file").read_text() == "three"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    fill(tmp_path / "out", "one", replace=True)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "file").read_text() == "one"


def test_a_command_refuses_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_new_folder(str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(ValueError, match="is a file; give a folder"):
        check_new_folder(str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"sub/deep: .*/file is a file; give another folder"):
        check_new_folder(str(tmp_path / "file/sub/deep"))
    assert check_folder(str(tmp_path)) == tmp_path  # one that may hold something already
    with pytest.raises(ValueError, match="exists and is not empty"):
        check_new_folder(str(tmp_path))


def test_a_disk_that_is_full_is_told_by_the_folders_name_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    program = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from aegpo.utilities.folders import published
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with published(Path(sys.argv[1])) as folder:
        save_file({"a": torch.zeros(100_000)}, folder / "x.safetensors")
except OSError as error:
    print(error)
"""
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(out)], capture_output=True, text=True, timeout=300
    )
    assert ended.stdout.startswith(f"{out} cannot be written: Error while serializing: I/O error")
    assert ended.returncode == 0 and names(tmp_path) == []
