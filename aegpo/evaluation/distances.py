"""FID and KID to a folder of images, by torchmetrics, on a network that is given."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.open_clip_model import find_open_clip, load_open_clip, pixel_settings

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 64
SUBSET = 1000
"""Images of a subset of KID, as in the publication, or as many as there are."""


@dataclass(frozen=True)
class Reference:
    """A folder of images, as features.

    Attributes:
        name: The folder with the number and a fingerprint of its images.
        network: The network, as it was given.
        features: Shape (n, D), fp32 on the CPU.
    """

    name: str
    network: str
    features: Tensor


class ImageFeatures(nn.Module):
    """The image embedding of a model of open_clip.

    Args:
        model: As for `aegpo.rewards.OpenCLIPSimilarity`: "shapes", a folder, hf-hub:owner/name, or
            an architecture with its weights after a comma ("ViT-B-32,laion2b_s34b_b79k").

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is none.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        name, comma, weights = model.partition(",")
        self.network, _ = load_open_clip(find_open_clip(name, weights if comma else None))
        self.network.eval().requires_grad_(False)
        self.settings = pixel_settings(self.network.visual.preprocess_cfg)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: Shape (n, 3, H, W) in [0, 1].

        Returns:
            Shape (n, D) fp32.
        """
        features: Tensor = self.network.encode_image(clip_pixels(images, **self.settings))
        return features.float()


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, in the order of their names.

    Args:
        folder: The folder.

    Returns:
        At least two files.

    Raises:
        ValueError: If there are fewer.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise ValueError(
            f"--reference {folder} holds {len(files)} images ({', '.join(SUFFIXES)}); FID and KID "
            "need two or more"
        )
    return files


def features_of(network: ImageFeatures, files: Sequence[Path], device: torch.device) -> Tensor:
    """Embed image files.

    Args:
        network: The network.
        files: Images of any sizes.
        device: Where it computes.

    Returns:
        Shape (n, D) fp32 on the CPU.
    """
    network.to(device)
    parts = []
    for start in range(0, len(files), BATCH):
        pixels = [_read(file) for file in files[start : start + BATCH]]
        if len({one.shape for one in pixels}) == 1:
            parts.append(network(torch.stack(pixels).to(device)).cpu())
        else:
            parts += [network(one[None].to(device)).cpu() for one in pixels]
    return torch.cat(parts)


def reference_of(
    folder: str, model: str, network: ImageFeatures, device: torch.device
) -> Reference:
    """Embed a folder.

    Args:
        folder: Of images.
        model: The network as it was given.
        network: The network.
        device: Where it computes.

    Returns:
        The reference.
    """
    files = images_in(Path(folder).expanduser())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    name = f"{Path(folder).name}: {len(files)} images ({digest.hexdigest()[:16]})"
    return Reference(name, model, features_of(network, files, device))


def distances(features: Tensor, reference: Reference) -> dict[str, Any]:
    """FID and KID of images to a reference.

    Both depend on how many images there are, FID much: it is biased upwards, most of all with fewer
    images than the network has features. So the numbers of images are part of the result.

    Args:
        features: Of the images, shape (n, D).
        reference: What they are compared with.

    Returns:
        `fid`, `kid`, `kid_std` over the subsets, `images`, and what they were measured with.
    """
    # Both ask for scipy and more at their import.
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    known = _Known(features.shape[1])
    fid = FrechetInceptionDistance(feature=known, normalize=True)
    size = min(SUBSET, len(features), len(reference.features))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features in buffer")
        kid = KernelInceptionDistance(feature=known, normalize=True, subset_size=size)
    for metric in (fid, kid):
        metric.update(reference.features, real=True)
        metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws subsets from the global state
        torch.default_generator.manual_seed(0)
        mean, std = kid.compute()
    return {
        "fid": float(fid.compute()),
        "kid": float(mean),
        "kid_std": float(std),
        "images": len(features),
        "reference": reference.name,
        "features": f"{reference.network} ({features.shape[1]} features)",
    }


class _Known(nn.Module):
    """Hands features on that are there already, in the place of a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _read(file: Path) -> Tensor:
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
