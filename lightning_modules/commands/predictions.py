"""What `aegpo predict` leaves: the images, and their scores as JSON Lines and CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from aegpo.distributed import own_rows, world
from aegpo.prompts import PromptBatch
from aegpo.rewards.guarded import guarded_scores
from aegpo.utilities.images import save_picture
from aegpo.utilities.tables import finite, write_csv
from lightning_modules.policy_module import PolicyModule


class PredictionWriter(BasePredictionWriter):
    """Writes every image that `predict` draws as a PNG file, and what the rewards say of it.

    They go to `predictions` in the log folder, or in the first of `predictions_1`, ... that is not
    there: `0000.png` by the image's number, `scores.jsonl` and `scores.csv`.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self.folder: Path | None = None
        self.records: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the folder, the same on every rank."""
        above = trainer.log_dir or trainer.default_root_dir  # a collective
        names = ("predictions", *(f"predictions_{number}" for number in range(1, 10_000)))
        free = next(Path(above) / name for name in names if not (Path(above) / name).exists())
        self.folder = trainer.strategy.broadcast(free)
        self.folder.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(  # Lightning's hook
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write and score this rank's part of a batch; the first rank lists all of it."""
        assert isinstance(pl_module, PolicyModule) and self.folder is not None
        own = batch.select(own_rows(len(batch)))
        scores = {
            reward.name: guarded_scores(reward, prediction, own.prompts, own.metadata).total
            for reward in pl_module.evaluation_rewards
        }
        records = []
        for row, index in enumerate(own.index.tolist()):
            name, prompt = f"{index:04d}.png", own.prompts[row]
            save_picture(prediction[row], self.folder / name, {"prompt": prompt})
            values = finite({reward: float(score[row]) for reward, score in scores.items()})
            records.append({"file": name, "prompt": prompt, "scores": values})
        self._list(records, world()[0])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table and say where all is."""
        if not trainer.is_global_zero or self.folder is None:
            return
        rewards = list(self.records[0]["scores"]) if self.records else []
        rows = (
            [one["file"], one["prompt"], *(one["scores"][reward] for reward in rewards)]
            for one in self.records
        )
        write_csv(self.folder / "scores.csv", ("file", "prompt", *rewards), rows)
        print(f"{self.folder}: {len(self.records)} images, scores.csv and scores.jsonl")

    def _list(self, records: list[dict[str, Any]], size: int) -> None:
        """Add the records of all ranks to the list, as they come."""
        parts: list[Any] = [records]
        if size > 1:
            parts = [None] * size
            torch.distributed.all_gather_object(parts, records)
        new = sorted((record for part in parts for record in part), key=lambda one: one["file"])
        self.records += new
        assert self.folder is not None
        if world()[1] == 0:
            with (self.folder / "scores.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in new)
