"""Rendered scenes of the bundled world, as images or as latents, for pretraining."""

from __future__ import annotations

import zlib

import lightning
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from aegpo.shapes.pipeline import BASE, shapes_tokenizer
from aegpo.shapes.prompts import Scene
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split

CHUNK = 256
"""Images rendered or encoded at once; it bounds memory only."""


def draw_scenes(num_scenes: int, weights: dict[str, float], seed: int) -> list[Scene]:
    """Draws scenes from all splits, category by category.

    The held-out combinations are drawn too: they are held out from the reinforcement learning,
    and the base should know all that the world can show.

    Args:
        num_scenes: Scenes to draw, with repetition.
        weights: Relative frequency of each category.
        seed: Seed of the draw.

    Returns:
        The scenes, in random order.

    Raises:
        ValueError: If a category is unknown, or the weights are not usable as frequencies.
    """
    by_category: dict[str, list[Scene]] = {}
    for name in ("train", "heldout", "hard"):
        for scene in split(name):
            by_category.setdefault(scene.category, []).append(scene)
    unknown = sorted(set(weights) - set(by_category))
    if unknown:
        raise ValueError(f"unknown categories {unknown}; the world has {sorted(by_category)}")
    if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"weights={weights} must not be negative, and one must be above 0")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    categories = list(weights)
    shares = torch.tensor(
        [weights[category] for category in categories], dtype=torch.float64, device="cpu"
    )
    drawn = torch.multinomial(shares, num_scenes, replacement=True, generator=generator)
    spread = torch.rand(num_scenes, generator=generator, dtype=torch.float64, device="cpu")
    scenes = []
    for category, position in zip(drawn.tolist(), spread.tolist(), strict=True):
        choices = by_category[categories[category]]
        scenes.append(choices[int(position * len(choices))])
    return scenes


class ShapesDataModule(lightning.LightningDataModule):
    """Renders scenes once, keeps them in memory, and serves them in random order.

    Batches are ``(images (n, 3, 32, 32) in [0, 1], token ids (n, S) int64)``; with ``latents``
    the first is ``(n, C, h, w)`` in the transformer's scale, (z - shift) * scale.

    Args:
        num_images: Training images to render.
        batch_size: Images per device and optimizer step.
        num_validation_images: Images of the validation, rendered with another seed.
        latents: Whether to serve latents instead of images.
        vae: Folder of the autoencoder that makes the latents; the bundled one by default.
        weights: Relative frequency of each category of scenes.
        seed: Seed of scenes, renders and order.
    """

    def __init__(
        self,
        num_images: int = 40000,
        batch_size: int = 64,
        num_validation_images: int = 512,
        latents: bool = False,
        vae: str | None = None,
        weights: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= num_images:
            raise ValueError(
                f"batch_size={batch_size} must be at least 1 and at most num_images={num_images}"
            )
        if num_validation_images < 1:
            raise ValueError(f"num_validation_images={num_validation_images} must be at least 1")
        self.num_images = num_images
        self.batch_size = batch_size
        self.num_validation_images = num_validation_images
        self.latents = latents
        self.vae = vae
        self.weights = weights or {"single": 0.2, "count": 0.25, "two": 0.25, "relation": 0.25}
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Renders, and encodes if latents are asked for."""
        seed = zlib.crc32(f"{self.seed}/validation".encode())
        self.validation = self._render(self.num_validation_images, seed)
        self.training = self._render(self.num_images, self.seed)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Whole batches in an order drawn anew every epoch."""
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        order = BatchSampler(
            RandomSampler(self.training, generator=generator), self.batch_size, drop_last=True
        )
        # batch_size=None: the sampler's lists index the tensors directly, with no collation.
        return DataLoader(self.training, sampler=order, batch_size=None)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The validation set in order."""
        order = BatchSampler(SequentialSampler(self.validation), CHUNK, drop_last=False)
        return DataLoader(self.validation, sampler=order, batch_size=None)

    @torch.no_grad()
    def _render(self, num_images: int, seed: int) -> TensorDataset:
        scenes = draw_scenes(num_images, self.weights, seed)
        with torch.device("cpu"):
            autoencoder = (
                AutoencoderKL.from_pretrained(self.vae or BASE / "vae") if self.latents else None
            )
        chunks = []
        for start in range(0, num_images, CHUNK):
            chunk = render_batch(scenes[start : start + CHUNK], seed + start)
            if autoencoder is not None:
                posterior = autoencoder.encode(2.0 * chunk - 1.0).latent_dist
                shift = autoencoder.config.shift_factor
                chunk = (posterior.mode() - shift) * autoencoder.config.scaling_factor
            chunks.append(chunk)
        tokens = shapes_tokenizer()([scene.text for scene in scenes], padding="max_length")
        return TensorDataset(torch.cat(chunks), torch.tensor(tokens.input_ids, device="cpu"))
