"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "peft", "transformers", "lightning", "bitsandbytes")


def describe_machine(tiny: bool = False) -> dict[str, Any]:
    """Name the card, the processor and the versions, and the day.

    Args:
        tiny: Whether the CPU is used, card or not.

    Returns:
        What JSON can hold.
    """
    import torch

    cuda = torch.cuda.is_available() and not tiny
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    threads = torch.get_num_threads()
    return {
        "card": torch.cuda.get_device_name() if cuda else None,
        "gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
        "processor": f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}",
        "driver": torch.version.cuda if cuda else None,
        "versions": versions,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "tiny": tiny,
    }


def heading() -> str:
    """One line for the top of a table: card or processor, how busy it is, versions, day."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = machine["card"] or machine["processor"]
    return f"{place}, load {os.getloadavg()[0]:.1f}; {versions}; {machine['date']}"


def _processor() -> str:
    """The CPU's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"
