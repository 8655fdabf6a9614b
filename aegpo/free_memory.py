"""Memory that a device has left for this process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may take."""


def free_bytes(device: torch.device) -> float:
    """Bytes that this process may still take.

    Args:
        device: A GPU, or the CPU.

    Returns:
        Of a GPU what is free, and what torch holds there without using it; else this process's part
        of the computer's available memory, or of what a container's limit leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + held)
    available = float(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())  # "max" without one
        available = min(available, limit - int((CGROUP / "memory.current").read_text()))
    return available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
