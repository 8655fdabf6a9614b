"""What a run was made with: versions and machine, as `fit` notes them beside its config."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from lightning.pytorch import Trainer

import aegpo

ENVIRONMENT = "environment.yaml"
"""The file's name."""
_PACKAGES = ("torch", "lightning", "diffusers", "transformers", "peft", "torchmetrics", "numpy")


def environment_of(trainer: Trainer) -> dict[str, str | int]:
    """Name the versions and the machine of a run.

    Args:
        trainer: Its trainer, whose device and number of processes count.

    Returns:
        By name; no path, no user and no name of a machine.
    """
    found: dict[str, str | int] = {"aegpo": aegpo.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    return found | {
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
    }
