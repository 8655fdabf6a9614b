"""SampleLogger: grids of held-out images with prompt and score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from aegpo.distributed import all_gather_rows, own_rows
from aegpo.prompts import PromptBatch
from aegpo.training import Training
from aegpo.utilities.images import image_grid, save_png
from callbacks.pictures import Pictures


class SampleLogger(L.Callback):
    """Shows the same held-out images at every evaluation, with prompt and score.

    Scores stand in the order of the rewards: the one trained on, then `evaluation_rewards`.
    The noise is fixed, so two grids differ by what was learned only. Grids go to the loggers that
    show pictures (`samples/held_out`) and to `samples/` in the log folder as PNG. They are the same
    on any number of ranks.

    Args:
        num_images: Images shown.
        columns: Images per row.
    """

    def __init__(self, num_images: int = 32, columns: int = 8) -> None:
        self.num_images, self.columns = num_images, columns
        self._refused = False
        self._pictures = Pictures()
        self._prompts: list[str] = []  # of all ranks; the rest is this rank's
        self._images: list[torch.Tensor] = []
        self._table: list[torch.Tensor] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Forget the last evaluation's images."""
        self._prompts, self._images, self._table = [], [], []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep this rank's part of the first images."""
        place = len(self._prompts) + own_rows(len(batch))
        first = int((place < self.num_images).sum())
        columns = [place[:first].double()]
        columns += [score[:first].double().cpu() for score in outputs.scores.values()]
        self._table.append(torch.stack(columns, dim=1))
        self._images.append(outputs.images[:first].cpu())
        self._prompts += batch.prompts

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Write the grid."""
        if not self._prompts:  # the same on every rank
            return
        # Three collectives, whatever this rank holds.
        folder = trainer.log_dir if trainer.loggers else None
        table, _ = all_gather_rows(torch.cat(self._table))
        images, _ = all_gather_rows(torch.cat(self._images))
        if not trainer.is_global_zero:
            return
        captions = []
        order = table[:, 0].argsort()
        for place, *scores in table[order].tolist():
            # Scores first: only a long prompt is cut, at its end.
            numbers = " / ".join(f"{score:.2f}" for score in scores)
            captions.append(f"{numbers}\n{self._prompts[int(place)]}")
        grid = image_grid(images[order], captions, self.columns)
        self._pictures.picture(trainer, "samples/held_out", grid, pl_module.iteration)
        if folder is not None:
            self._save(grid, Path(folder) / f"samples/held_out_{pl_module.iteration:05d}.png")

    def _save(self, grid: Image.Image, file: Path) -> None:
        """Write a grid; a disk that is full costs the picture and, the first time, a warning."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_png(grid, file)
        except OSError as error:
            if not self._refused:
                rank_zero_warn(
                    f"{file} could not be written ({error}); the run goes on without the pictures "
                    "that the disk refuses"
                )
            self._refused = True
