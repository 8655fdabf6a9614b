"""That two trainings which begin at the same moment do not take one folder."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from lightning_modules.commands.run_logs import read_scalars

NAME = "AEGPO_RUN_NAME"
"""Variable by which the processes that a run starts know its name."""
TRAINED = ("cost/evaluations", "reward/mean")
"""Tags that a run has from its first iteration on; one that was refused before has none."""
_held: list[tuple[int, list[Path]]] = []
"""What this process holds: an open folder, and what was made for it, innermost first."""


def holds_run(folder: Path) -> bool:
    """Whether a folder has a run's checkpoint, or a log with an iteration.

    Args:
        folder: A run's log folder; it need not exist.

    Returns:
        False for what a run left that was refused before its first iteration.
    """
    if any(folder.glob("*.ckpt")) or any(folder.glob("*/*.ckpt")):
        return True
    return folder.is_dir() and any(read_scalars(folder, TRAINED).values())


def reserve(folder: Path) -> bool:
    """Make a folder and hold it until `release`, or until the process ends.

    Args:
        folder: Of a run that begins.

    Returns:
        False if another process holds it. Where the file system knows no locks nobody is asked.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # where two that begin in the same moment are not told apart
        return True
    import fcntl

    there = os.stat(folder)
    if any(os.path.samestat(there, os.fstat(descriptor)) for descriptor, _ in _held):
        return True  # this process's own, of a training before
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        os.close(descriptor)
        return True
    _held.append((descriptor, made))
    return True


def release() -> None:
    """Let go of all folders, and remove those that nothing was written into."""
    os.environ.pop(NAME, None)
    while _held:
        descriptor, made = _held.pop()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        os.close(descriptor)
