"""Tensors of the host on a device, without the host waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

_IN_ORDER = ("cpu", "mps")
"""Devices to which a copy that nobody waits for brings nothing, or is not safe."""


def without_waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied behind the work that the device still has to do.

    A plain copy from the host waits for all that work first, and with it the launch of what comes
    next. From pinned memory the copy takes its turn on the device, and torch keeps the memory until
    then.

    Args:
        tensor: On the host, or on the device already.
        device: Where it is wanted.

    Returns:
        The same values there; the tensor itself if it is there.
    """
    if tensor.device == device or device.type in _IN_ORDER or tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda" and tensor.numel() > 0:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
