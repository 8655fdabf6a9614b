"""Items of a part of `make gpu` that go wrong in every way an item can."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def fault(item: str, settings: Any, emit: Any) -> None:
    """Do what the item is called."""
    if item == "raises":
        raise RuntimeError("the card says no")
    if item == "nan":
        emit("share", float("nan"), True)
    if item == "dies":
        emit("before", 1.0, True)
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hangs":
        emit("before", 1.0, True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if item.startswith("good"):
        emit("tiny", settings.tiny, True)
        emit("figure", 2.5)
