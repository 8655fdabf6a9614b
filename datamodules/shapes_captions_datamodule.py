"""Rendered scenes with their prompts as captions, for contrastive training."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aegpo.shapes.captions import all_scenes, exclusive
from aegpo.shapes.prompts import Scene
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split

SHARES = {"single": 0.05, "count": 0.15, "two": 0.35, "relation": 0.45}
"""How often a category is drawn, as long as it has scenes left: few singles fill a batch, and
relations take longest to learn."""

HELD_OUT = ("heldout", "hard")
"""Splits whose texts no training batch holds."""

CaptionedBatch = tuple[Tensor, list[str]]


class ShapesCaptionsDataModule(lightning.LightningDataModule):
    """Serves batches in which every caption is true of its own picture and of no other.

    Batches are ``(images (n, 3, 32, 32) in [0, 1], n captions)``. Captions are all texts of the
    grammar that neither the held-out nor the hard split has; the validation's are the held-out
    split's, as many as exclude each other. Batches are rendered when they are asked for: no
    training picture comes twice.

    Args:
        batch_size: Captions per device and optimizer step.
        num_batches: Training batches of an epoch.
        num_validation_batches: Validation batches; each holds all held-out captions, newly drawn.
        seed: Seed of captions and pictures.

    Raises:
        ValueError: If a number is not positive, or the world has too few captions for a batch.
    """

    def __init__(
        self,
        batch_size: int = 256,
        num_batches: int = 1000,
        num_validation_batches: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_batches < 1 or num_validation_batches < 1:
            raise ValueError(
                f"num_batches={num_batches} and num_validation_batches={num_validation_batches} "
                "must be at least 1"
            )
        held_out = {scene.text for name in HELD_OUT for scene in split(name)}
        self.scenes = [scene for scene in all_scenes() if scene.text not in held_out]
        most = len(exclusive(self.scenes))
        if not 2 <= batch_size <= most // 2:
            raise ValueError(
                f"batch_size={batch_size} must be at least 2, to have something to contrast, and "
                f"at most {most // 2}, half of the captions that exclude each other"
            )
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.num_validation_batches = num_validation_batches
        self.seed = seed

    def train_dataloader(self) -> DataLoader[CaptionedBatch]:
        """Batches of captions drawn anew for every index."""
        batches = DrawnBatches(self.scenes, self.batch_size, self.num_batches, self.seed)
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader[CaptionedBatch]:
        """Batches of all held-out captions that exclude each other."""
        scenes = exclusive(split("heldout"))
        seed = zlib.crc32(f"{self.seed}/validation".encode())
        batches = DrawnBatches(scenes, len(scenes), self.num_validation_batches, seed)
        return DataLoader(batches, batch_size=None)


class DrawnBatches(Dataset[CaptionedBatch]):
    """Batches of mutually exclusive captions, each a function of the seed and its index.

    Args:
        scenes: What to draw from, without repetition inside a batch.
        batch_size: Captions of a batch.
        num_batches: Number of batches.
        seed: Seed of the draw and of the pictures.
    """

    def __init__(
        self, scenes: Sequence[Scene], batch_size: int, num_batches: int, seed: int
    ) -> None:
        self.scenes = scenes
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        size = Counter(scene.category for scene in scenes)
        self.weights = torch.tensor(
            [SHARES[scene.category] / size[scene.category] for scene in scenes],
            dtype=torch.float64,
            device="cpu",
        )

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> CaptionedBatch:
        seed = zlib.crc32(f"{self.seed}/{index}".encode())
        generator = torch.Generator(device="cpu").manual_seed(seed)
        order = torch.multinomial(self.weights, len(self.scenes), generator=generator)
        scenes = exclusive((self.scenes[row] for row in order.tolist()), self.batch_size)
        return render_batch(scenes, seed), [scene.text for scene in scenes]
