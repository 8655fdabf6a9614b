"""Files of users: never half written, and read as they were meant or refused.

A file that takes another's place is whole before the old one goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_SUFFIX = "partial"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file aside, in its own folder; it takes its place when all went well.

    A rename is one step only inside a file system, so the file is never written anywhere else. It
    reaches the disk before it gets its name: a power failure leaves the old content or the new.
    The name aside is no other process's, on no other machine that shares the folder.

    Args:
        path: The file that is to be there; its folder is made if need be.

    Yields:
        The path to write to; the file is removed if an exception is raised.

    Raises:
        OSError: If the disk refuses; `path` is then what it was.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = aside(final.with_name(f".{final.name}"), _SUFFIX)
    try:
        yield partial
        sync(partial)
        os.replace(partial, final)
        sync(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a text file, all of it or nothing.

    Args:
        path: The file; made if it is not there.
        line: The line, without its end.

    Raises:
        OSError: If the disk refuses; the file is then what it was.
    """
    with Path(path).open("ab", buffering=0) as file:
        before = file.tell()
        content = f"{line}\n".encode()
        try:
            # A disk that is nearly full takes a part, without an error, and refuses the rest.
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(before)
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk.

    Args:
        path: A file or a folder.

    Raises:
        OSError: If a file's content did not reach the disk.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        # Some network file systems cannot sync a folder; a file that cannot be synced is an error.
        with suppress(*([OSError] if folder else [])):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed processes left of a file that this process alone writes.

    Args:
        path: The file, as it was given to `replacing`.
    """
    final = Path(path)
    for partial in set_aside(final.with_name(f".{final.name}"), _SUFFIX):
        partial.unlink(missing_ok=True)


def aside(path: Path, suffix: str) -> Path:
    """A name beside a path that no other process has, on no other machine that shares the folder.

    Args:
        path: The file or folder.
        suffix: What it is aside for.

    Returns:
        The path; nothing is there.
    """
    return path.with_name(f"{path.name}.{uuid4().hex}.{suffix}")


def set_aside(path: Path, suffix: str) -> list[Path]:
    """What stands beside a path under names that `aside` gave.

    Args:
        path: The file or folder.
        suffix: What it is aside for.

    Returns:
        The paths that exist, in no order.
    """
    found = []
    for other in path.parent.glob(f"*.{suffix}"):
        name, _, unique = other.name.removesuffix(f".{suffix}").rpartition(".")
        if name == path.name and len(unique) == 32 and not set(unique) - set("0123456789abcdef"):
            found.append(other)
    return found


def read_utf8(path: Path, source: str) -> str:
    """Read a text file.

    Args:
        path: The file.
        source: Its name as the user gave it, for messages.

    Returns:
        Its text, with line ends as they are; a byte-order mark, which editors on Windows put before
        a text, is no part of it.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8, with the line and the byte, or is a file of another kind.
    """
    content = path.read_bytes()
    _refuse_other_kinds(content, source)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8 (from Latin-1: iconv -f latin1 -t utf8)"
        ) from None


def _refuse_other_kinds(content: bytes, source: str) -> None:
    """Name what is no text in UTF-8, whatever the file's ending says."""
    utf16 = "UTF-16; save the file as UTF-8 (iconv -f utf-16 -t utf8)"
    for start, kind in (
        (b"\x1f\x8b", "compressed by gzip; unpack it first"),
        (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save it as CSV in UTF-8"),
        (b"\xff\xfe", utf16),
        (b"\xfe\xff", utf16),
    ):
        if content.startswith(start):
            raise ValueError(f"{source} is {kind}")
    if b"\x00" in content:
        line = content.count(b"\n", 0, content.index(b"\x00")) + 1
        raise ValueError(
            f"{source}:{line}: a zero byte, which no text holds; save the file as UTF-8 (from "
            "UTF-16 without a mark: iconv -f utf-16le -t utf8)"
        )
