"""A started process that ends with the one that started it. Imported before torch."""

from __future__ import annotations

import ctypes
import signal


def end_with_parent() -> None:
    """Have Linux end this process when its parent is killed, so that no two share a folder.

    What `subprocess.Popen` runs between fork and exec.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
