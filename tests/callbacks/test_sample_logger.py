"""The grid of held-out images: which ones, with what below, and where it goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from aegpo.prompts import PromptBatch
from callbacks import sample_logger
from callbacks.sample_logger import SampleLogger


def trainer(folder: Path | None, is_global_zero: bool = True, logs: bool = True) -> SimpleNamespace:
    loggers = [DummyLogger()] if logs else []
    return SimpleNamespace(log_dir=folder, loggers=loggers, is_global_zero=is_global_zero)


def outputs(start: int) -> SimpleNamespace:
    prompts = [f"prompt {start + row}" for row in range(2)]
    return SimpleNamespace(
        batch=PromptBatch(prompts, torch.arange(start, start + 2), [{}, {}]),
        images=torch.full((2, 3, 4, 4), start / 4),
        scores={"judge": torch.tensor([0.125, 1.0]), "match": torch.tensor([0.5, 0.0])},
    )


def evaluate(logger: SampleLogger, trainer: SimpleNamespace, iteration: int) -> None:
    module = SimpleNamespace(iteration=iteration)
    logger.on_validation_epoch_start(trainer, module)
    for number in range(3):
        logger.on_validation_batch_end(trainer, module, outputs(2 * number), None, number)
    logger.on_validation_epoch_end(trainer, module)


def test_the_first_images_are_shown_with_prompt_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[torch.Tensor, list[str]]] = []
    draw = sample_logger.image_grid

    def watched(images: torch.Tensor, captions: list[str], columns: int) -> Image.Image:
        shown.append((images, captions))
        return draw(images, captions, columns)

    monkeypatch.setattr(sample_logger, "image_grid", watched)
    logger = SampleLogger(num_images=3, columns=2)
    evaluate(logger, trainer(tmp_path), 0)
    evaluate(logger, trainer(tmp_path), 20)
    for images, captions in shown:
        assert captions == [
            "0.12 / 0.50 prompt 0",
            "1.00 / 0.00 prompt 1",
            "0.12 / 0.50 prompt 2",
        ]
        assert images[:, 0, 0, 0].tolist() == [0.0, 0.0, 0.5]
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["held_out_00000.png", "held_out_00020.png"]
    with Image.open(files[0]) as grid:
        assert grid.size == (2 * 132, 2 * 168)


def test_only_rank_zero_writes_and_only_where_there_is_a_folder(tmp_path: Path) -> None:
    evaluate(SampleLogger(), trainer(tmp_path, is_global_zero=False), 0)
    evaluate(SampleLogger(), trainer(tmp_path, logs=False), 0)
    evaluate(SampleLogger(), trainer(None), 0)
    assert list(tmp_path.iterdir()) == []


def test_without_validation_nothing_is_drawn(tmp_path: Path) -> None:
    logger = SampleLogger()
    logger.on_validation_epoch_start(trainer(tmp_path), None)
    logger.on_validation_epoch_end(trainer(tmp_path), None)
    assert list(tmp_path.iterdir()) == []
