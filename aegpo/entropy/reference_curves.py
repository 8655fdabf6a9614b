"""Entropy curves of a base that never changes, kept on disk for later runs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from aegpo.tensor_folder import TensorFolder

_SAMPLES = 64
"""Weights of a tensor that its fingerprint is made of."""
_CURVE = "entropy"


class CurveFolder(TensorFolder):
    """Curves as files, one per prompt; what is unreadable or no curve is drawn again.

    Args:
        folder: Created if absent.
        settings: What all curves of a run depend on: the model's `fingerprint`, layers, rows.

    Raises:
        OSError: If the folder cannot be created.
    """

    def __init__(self, folder: str | Path, settings: Sequence[object]) -> None:
        super().__init__(folder, settings, "drawing again")

    def get(
        self, keys: Sequence[str], num_steps: int, draw: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """Curves by their keys; those that are not there are drawn together, and kept.

        Args:
            keys: What each curve depends on beside the settings, as text: B of them.
            num_steps: Denoising steps T.
            draw: Returns (n, T) curves for the n numbers of keys that it is given, n at least 1.

        Returns:
            (B, T) fp32 on the CPU.
        """
        curves = [self._load(key, num_steps) for key in keys]
        missing = [number for number, curve in enumerate(curves) if curve is None]
        drawn = draw(missing).float().cpu() if missing else torch.empty(0, num_steps, device="cpu")
        for number, curve in zip(missing, drawn, strict=True):
            curves[number] = curve
            self.save_tensors(keys[number], {_CURVE: curve.clone()})
        present = [curve for curve in curves if curve is not None]
        return torch.stack(present) if present else drawn

    def _load(self, key: str, num_steps: int) -> Tensor | None:
        parts = self.load_tensors(key, _CURVE)
        if parts is None:
            return None
        curve = parts[_CURVE]
        if (
            curve.shape != (num_steps,)
            or curve.dtype != torch.float32
            or not curve.isfinite().all()
        ):
            warnings.warn(
                f"{self.path(key)} holds no curve of {num_steps} steps; drawing again", stacklevel=3
            )
            return None
        return curve


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Tell a base model from others by its weights, adapters left out.

    Each tensor adds its name, shape, dtype and `_SAMPLES` values spread over it. Training changes
    all values of the tensors that it trains, so that two checkpoints differ in these; reading them
    takes milliseconds, where all of a model of 12 billion would take a minute.

    Args:
        model: The network, adapters attached or not.

    Returns:
        A hash, the same for the same weights on any device.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(_base_tensors(model)):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(digest_of([_sampled(tensor)]).encode())
    return digest.hexdigest()


def digest_of(tensors: Sequence[Tensor | None]) -> str:
    """A hash of tensors' values, the same on any device; None is told from a tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(values.shape)} {values.dtype}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    last, count = max(0, len(flat) - 1), min(_SAMPLES, len(flat))
    places = torch.linspace(0, last, count, dtype=torch.float64, device="cpu")
    return flat[places.long().to(flat.device)]
