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
def published(folder: Path) -> Iterator[Path]:
    """Fill a folder beside `folder`, which takes its place when all went well.

    Args:
        folder: The folder that is to appear; absent or empty.

    Yields:
        The folder to write into; removed if an exception is raised.
    """
    final = folder.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if final.exists():
            final.rmdir()
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
