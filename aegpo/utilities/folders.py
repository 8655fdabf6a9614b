"""A folder that a command fills: all of it appears at the end, or nothing."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from aegpo.utilities.files import aside, set_aside, sync

WRITTEN = ".written"
"""File in a folder that may be replaced: the names of all files that were written into it."""

PREVIOUS = "previous"


def check_folder(out: str) -> Path:
    """Refuse a folder that cannot be there, before anything is measured or drawn.

    Args:
        out: The folder that was asked for; it need not exist.

    Returns:
        Its path.

    Raises:
        ValueError: If it is a file, or would lie in one.
    """
    folder = Path(out).expanduser()
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder.parent)
    if there == folder and not folder.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if there.exists() and not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file; give another folder")
    return folder


def check_new_folder(out: str) -> Path:
    """Refuse to write into what is there already, before a model is loaded.

    Args:
        out: The folder that was asked for.

    Returns:
        Its path.

    Raises:
        ValueError: If it is a file, or a folder that is not empty.
    """
    folder = check_folder(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--out {out} exists and is not empty; give a new folder or remove it")
    return folder


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything that `published` did not write.

    Args:
        folder: The folder; it need not exist.

    Raises:
        FileExistsError: If it is a file, or something in it is not in its list of what was written.
    """
    if not folder.exists():
        return
    taken = f"{folder} would be replaced, but "
    advice = "; give another folder, or move it away"
    if not folder.is_dir():
        raise FileExistsError(f"{taken}is a file{advice}")
    present = _files(folder)
    listed = folder / WRITTEN
    if listed.is_file():
        present -= {WRITTEN, *listed.read_text(encoding="utf-8").splitlines()}
    if present:
        raise FileExistsError(f"{taken}{min(present)} in it was not written by this{advice}")


@contextmanager
def published(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Fill a folder beside `folder`, which takes its place when all went well.

    Args:
        folder: The folder that is to appear.
        replace: Whether it may exist with what an earlier call wrote in it, and nothing else. What
            was there is moved aside in one step, and comes back if the new folder does not take its
            place, be it at the next call, if the process was killed in between.

    Yields:
        The folder to write into, empty; removed if an exception is raised.

    Raises:
        OSError: If `folder` must not be replaced, or the disk refuses.
    """
    final = folder.resolve()
    if replace:
        _bring_back(final)
        check_replaceable(final)
    partial = aside(final, "partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace:
            names = "".join(f"{name}\n" for name in sorted(_files(partial)))
            (partial / WRITTEN).write_text(names, encoding="utf-8")
        readers = _readers(partial)
        for name in _files(partial):
            file = partial / name
            file.chmod(file.stat().st_mode | readers)
            sync(file)
        if replace and final.exists():
            _swap(partial, final)
        else:
            if final.exists():
                final.rmdir()
            partial.rename(final)
    except SafetensorError as error:  # of the disk; the error of a file that is none has no "I/O"
        if "I/O error" not in str(error):
            raise
        raise OSError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _readers(folder: Path) -> int:
    """Who may read and write a file that is made as any other; safetensors' are the owner's."""
    usual = aside(folder / "usual", "mode")
    usual.touch()
    mode = stat.S_IMODE(usual.stat().st_mode)
    usual.unlink()
    return mode


def _swap(partial: Path, final: Path) -> None:
    """Put one folder in another's place, which is removed once that is done."""
    check_replaceable(final)
    previous = aside(final, PREVIOUS)
    final.rename(previous)
    try:
        partial.rename(final)
    except BaseException:
        previous.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _bring_back(final: Path) -> None:
    """Give the folder that a killed process moved aside its name again."""
    before = [path for path in set_aside(final, PREVIOUS) if (path / WRITTEN).is_file()]
    if before and not final.exists():
        before.pop().rename(final)


def _files(folder: Path) -> set[str]:
    """What lies in a folder, at any depth, relative to it; empty folders are nothing."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
