"""SampleLogger: grids of held-out images with prompt and score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from aegpo.prompts import PromptBatch
from aegpo.training import Training
from aegpo.utilities.images import image_grid
from callbacks.tensorboard import tensorboard_writers


class SampleLogger(L.Callback):
    """Shows the same held-out images at every evaluation, with prompt and score.

    Scores stand in the order of the rewards: the one trained on, then `evaluation_rewards`.
    The noise is fixed, so two grids differ by what was learned only. Grids go to TensorBoard
    (`samples/held_out`) and to `samples/` in the log folder as PNG.

    Args:
        num_images: Images shown.
        columns: Images per row.
    """

    def __init__(self, num_images: int = 32, columns: int = 8) -> None:
        self.num_images, self.columns = num_images, columns
        self._images: list[torch.Tensor] = []
        self._captions: list[str] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Forget the last evaluation's images."""
        self._images, self._captions = [], []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images."""
        for row, image in enumerate(outputs.images):
            if len(self._images) >= self.num_images:
                return
            # Scores first: a long prompt is cut at its end.
            scores = " / ".join(f"{float(score[row]):.2f}" for score in outputs.scores.values())
            self._images.append(image.cpu())
            self._captions.append(f"{scores} {outputs.batch.prompts[row]}")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Write the grid."""
        if not self._images or not trainer.is_global_zero:
            return
        grid = image_grid(torch.stack(self._images), self._captions, self.columns)
        pixels = np.asarray(grid)
        for writer in tensorboard_writers(trainer):
            writer.add_image("samples/held_out", pixels, pl_module.iteration, dataformats="HWC")
        if trainer.loggers and trainer.log_dir is not None:
            folder = Path(trainer.log_dir) / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            grid.save(folder / f"held_out_{pl_module.iteration:05d}.png")
