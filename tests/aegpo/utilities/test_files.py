"""A file is replaced as a whole, whatever fails or is killed, and at whatever moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aegpo.utilities.files import append_line, remove_leftovers, replacing

KILLED = """
import os, signal, sys
import aegpo.utilities.files as files
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(*{where}, kill)
with files.replacing(sys.argv[1]) as partial:
    partial.write_text("new")
"""


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        assert partial.parent == path.parent
        partial.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_with_the_usual_rights(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "file", "one")
    (tmp_path / "deep" / "plain").touch()
    write(tmp_path / "deep" / "file", "two")
    assert (tmp_path / "deep" / "file").read_text() == "two"
    modes = {path.stat().st_mode for path in (tmp_path / "deep").iterdir()}
    assert names(tmp_path / "deep") == ["file", "plain"] and len(modes) == 1


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_at_the_end_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(tmp_path / "file", "one")

    def full(*_: object) -> None:
        assert len(names(tmp_path)) == 2  # the new one is written, and aside
        raise OSError("no space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "one" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("where", ["(os, 'replace')", "(os, 'fsync')"])
def test_a_kill_before_the_rename_leaves_the_old_one(tmp_path: Path, where: str) -> None:
    write(tmp_path / "file", "one")
    program = [sys.executable, "-c", KILLED.format(where=where), str(tmp_path / "file")]
    assert subprocess.run(program).returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "one" and len(names(tmp_path)) == 2
    for other in (".other.partial", ".file.partial", f".file.{'x' * 32}.partial", "file.partial"):
        (tmp_path / other).touch()  # a user's
    before = len(names(tmp_path))
    remove_leftovers(tmp_path / "file")
    assert len(names(tmp_path)) == before - 1 and (tmp_path / "file").exists()


def test_names_aside_differ_between_writers_of_one_process(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as first, replacing(tmp_path / "file") as second:
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert (tmp_path / "file").read_text() == "one"  # it was finished last


FULL = """
import resource, sys
from aegpo.utilities.files import append_line
append_line(sys.argv[1], "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    append_line(sys.argv[1], "second, too long")
except OSError as error:
    print(error.strerror)
"""


def test_a_line_that_does_not_fit_is_not_there_by_half(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "File too large\n"
    assert file.read_text() == "first\n"
    append_line(file, "third")
    assert file.read_text() == "first\nthird\n"
