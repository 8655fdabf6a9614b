"""Figures, pictures and tables in loggers of several kinds, written by one training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from probe_by_hand import probe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.exploration import EntropyPeaks
from callbacks.curve_logger import CurveLogger
from callbacks.pictures import Pictures
from callbacks.sample_logger import SampleLogger


class Numbers(Logger):
    """A logger of a user's that shows numbers alone."""

    @property
    def name(self) -> str:
        return "numbers"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """They are not kept."""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """None are kept."""


class Shows(Numbers):
    """One that shows pictures and texts too, by the methods that Lightning's for W&B has."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, int]] = []
        self.cells: list[list[str]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert all(isinstance(image, Image.Image) for image in images) and step is not None
        self.shown.append((key, step))

    def log_text(
        self, key: str, columns: list[str], data: list[list[str]], step: int | None = None
    ) -> None:
        assert step is not None
        self.shown.append((key, step))
        self.cells += data


TABLES = ("entropy/prompts", "allocation/prompts")


def test_every_logger_that_can_gets_them(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    shows = Shows()
    loggers = [TensorBoardLogger(tmp_path, "tb", ""), CSVLogger(tmp_path, "csv", ""), shows]
    module = tiny_module(tiny_sd3_folder, num_steps=3, step_selector=EntropyPeaks(top_k=1))
    callbacks = [probe(), CurveLogger(), SampleLogger(num_images=2)]
    trainer = tiny_trainer(
        tmp_path, callbacks, max_epochs=1, logger=[*loggers, Numbers()], log_every_n_steps=1
    )
    trainer.fit(module, tiny_data(tmp_path, batches_per_epoch=1))
    figures = ["entropy/curve", "entropy/by_layer"]
    pictures = [*figures, "samples/held_out"]
    assert sorted(shows.shown) == sorted((tag, 1) for tag in [*pictures, *TABLES])
    assert {row[0] for row in shows.cells} == set(module.last.batch.prompts)
    log = EventAccumulator(str(tmp_path / "tb"))
    log.Reload()
    assert sorted(log.Tags()["images"]) == sorted(pictures)
    for tag in figures:
        with Image.open(tmp_path / f"csv/figures/{tag.replace('/', '_')}_00001.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("L").getcolors() or []) > 16
    text = (tmp_path / "csv/figures/entropy_prompts_00001.md").read_text(encoding="utf-8")
    assert all(prompt in text for prompt in module.last.batch.prompts)


def test_a_refused_picture_is_said_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "csv", "")
    trainer = tiny_trainer(tmp_path, [], logger=logger)
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/figures").write_text("a file is in the way")
    pictures = Pictures()
    with pytest.warns(UserWarning, match="could not be written"):
        pictures.table(trainer, "a/b", ("x",), [("y",)], 1)
    pictures.table(trainer, "a/b", ("x",), [("y",)], 2)
