"""The grid of held-out images: which ones, with what below, and where it goes."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer

from callbacks import sample_logger
from callbacks.sample_logger import SampleLogger


def evaluate(
    tmp_path: Path, folder: Path, logger: SampleLogger, logs: bool = True, val_images: int = 6
) -> L.Trainer:
    """`validate` of six held-out images in batches of four and two."""
    trainer = tiny_trainer(
        tmp_path, [logger], logger=TensorBoardLogger(tmp_path, "log", "") if logs else False
    )
    data = tiny_data(tmp_path, val_images=val_images)
    trainer.validate(tiny_module(folder), data, verbose=False)
    return trainer


def test_the_first_images_are_shown_with_prompt_and_scores(
    tmp_path: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[torch.Tensor, list[str]]] = []
    draw = sample_logger.image_grid

    def watched(images: torch.Tensor, captions: list[str], columns: int) -> Image.Image:
        shown.append((images, captions))
        return draw(images, captions, columns)

    monkeypatch.setattr(sample_logger, "image_grid", watched)
    logger = SampleLogger(num_images=5, columns=2)
    evaluate(tmp_path, tiny_sd3_folder, logger)
    evaluate(tmp_path, tiny_sd3_folder, logger)  # the first evaluation's are forgotten
    data = tiny_data(tmp_path)
    prompts = [prompt for batch in data.val_dataloader() for prompt in batch.prompts]
    for images, captions in shown:
        assert [caption.split("\n", 1)[1] for caption in captions] == prompts[:5]
        scores = Redness()(images, [], [])
        assert [caption.split("\n", 1)[0] for caption in captions] == [f"{s:.2f}" for s in scores]
    assert len(shown) == 2 and torch.equal(shown[0][0], shown[1][0])
    with Image.open(tmp_path / "log/samples/held_out_00000.png") as grid:
        assert grid.size == (2 * 132, 3 * 168)


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_without_a_logger_or_an_image_nothing_is_written(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    evaluate(tmp_path, tiny_sd3_folder, SampleLogger(), logs=False)
    evaluate(tmp_path, tiny_sd3_folder, SampleLogger(), val_images=0)
    assert not list(tmp_path.rglob("*.png"))
