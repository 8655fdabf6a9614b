"""Where a rank is: which function of ours, in which collective."""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

import aegpo
from lightning_modules.arguments.sources import OUR_PACKAGES

_ROOT = Path(aegpo.__file__).parents[1]
_COLLECTIVES = "torch/distributed"
_NOT_A_PLACE = ("aegpo/distributed.py", "lightning_modules/cli/")
"""Files of ours that a wait is never about: the collectives themselves, and what starts a run."""


def main_thread() -> str:
    """Say where the main thread of this process is, from any thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return describe(_inner_first(frame))


def of_error(error: BaseException) -> str:
    """Say where an exception was raised."""
    return describe(reversed(list(_frames(error.__traceback__))))


def waited(error: BaseException) -> bool:
    """Whether an exception came out of a collective."""
    return any(_COLLECTIVES in frame.f_code.co_filename for frame in _frames(error.__traceback__))


def describe(frames: Iterable[FrameType]) -> str:
    """Name the innermost function of ours or of the user's, and the collective that it is in.

    Args:
        frames: From the innermost outwards.

    Returns:
        Such as ``all_gather in Canary.on_train_batch_end (callbacks/canary.py:68)``.
    """
    collective, place, loop = "", "", ""
    for frame in frames:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if _COLLECTIVES in file and name != "wrapper":
            collective = name
        elif _is_place(file):
            place = f"{_qualified(frame)} ({_short(file)}:{frame.f_lineno})"
            break
        elif "/lightning/" in file:
            loop = loop or f"{_qualified(frame)} ({_short(file)}:{frame.f_lineno})"
            if file.endswith("/trainer/call.py"):  # what is further out called a hook, or all
                break
    return " in ".join(filter(None, (collective, place or loop))) or "an unknown place"


def _is_place(file: str) -> bool:
    path = Path(file)
    if any(_ROOT / package in path.parents for package in OUR_PACKAGES):
        return not _short(file).startswith(_NOT_A_PLACE)
    foreign = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"], "<")
    beside = ("/bin/", "__main__.py")  # the console script
    return not any(part in file for part in (*foreign, *beside))


def _short(file: str) -> str:
    path = Path(file)
    return path.relative_to(_ROOT).as_posix() if _ROOT in path.parents else path.name


def _qualified(frame: FrameType) -> str:
    owner = frame.f_locals.get("self")
    name = frame.f_code.co_name
    return name if owner is None else f"{type(owner).__name__}.{name}"


def _inner_first(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
