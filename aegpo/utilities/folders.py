"""A folder that a command fills: all of it appears at the end, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_new_folder(out: str) -> Path:
    """Refuse to write into what is there already, before a model is loaded.

    Args:
        out: The folder that was asked for.

    Returns:
        Its path.

    Raises:
        ValueError: If it is a file, or a folder that is not empty.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {out} is a file; give a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--out {out} exists and is not empty; give a new folder or remove it")
    return folder


@contextmanager
def published(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Fill a folder beside `folder`, which takes its place when all went well.

    Args:
        folder: The folder that is to appear.
        replace: Whether it may exist with something in it. What was there is moved aside in one
            step, and comes back if the new folder does not take its place.

    Yields:
        The folder to write into, empty; removed if an exception is raised.

    Raises:
        OSError: If `folder` is not empty and must not be replaced, or the disk refuses.
    """
    final = folder.resolve()
    partial = final.with_name(f"{final.name}.partial")
    previous = final.with_name(f"{final.name}.previous")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if not replace and final.exists():
            final.rmdir()
        elif final.exists():
            shutil.rmtree(previous, ignore_errors=True)
            final.rename(previous)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replace and not final.exists() and previous.exists():  # also after a killed process
            previous.rename(final)
        elif replace:
            shutil.rmtree(previous, ignore_errors=True)
