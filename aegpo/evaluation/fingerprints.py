"""What a number belongs to: fingerprints of weights, and versions."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from aegpo import __version__

PACKAGES = ("torch", "diffusers", "peft", "transformers", "lightning", "torchmetrics", "scipy")


def weights_fingerprint(model: nn.Module, adapters: bool) -> str:
    """Hash the weights that a denoiser computes with.

    Args:
        model: The denoiser.
        adapters: Whether its adapters take part; without them it is the base, whatever adapters
            lie beside it.

    Returns:
        16 hexadecimal digits: names, shapes, dtypes and every bit of the values.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" in name and not adapters:
            continue
        if isinstance(tensor, Tensor):
            plain = name.replace(".base_layer.", ".")
            digest.update(f"{plain} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that a score may depend on."""
    found = {"aegpo": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
