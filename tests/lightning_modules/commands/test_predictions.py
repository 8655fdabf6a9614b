"""`predict` leaves its images, and what the rewards say of each."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer

from datamodules.prompt_datamodule import PromptDataModule
from lightning_modules.commands.predictions import PredictionWriter


def test_images_and_scores_lie_in_a_folder_of_their_own(
    tiny_sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = tiny_module(tiny_sd3_folder, reward=Redness()), tiny_data(tmp_path)
    for _ in range(2):
        tiny_trainer(tmp_path, [PredictionWriter()]).predict(module, datamodule=data)
    out = tmp_path / "predictions"
    files = [f"{number:04d}.png" for number in range(6)]
    assert sorted(path.name for path in out.iterdir()) == [*files, "scores.csv", "scores.jsonl"]
    assert f"{out}: 6 images, scores.csv and scores.jsonl" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [record["file"] for record in records] == files
    assert [record["prompt"] for record in records] == prompts_of(data)
    for record in records:
        with Image.open(out / record["file"]) as picture:
            assert picture.text["prompt"] == record["prompt"]
            pixels = np.asarray(picture) / 255
        redness = (pixels[..., 0] - pixels[..., 1]).mean()
        assert record["scores"]["redness"] == pytest.approx(redness, abs=2e-3)
    with (out / "scores.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [float(row["redness"]) for row in rows] == [r["scores"]["redness"] for r in records]
    again = (tmp_path / "predictions_1" / "scores.jsonl").read_text()
    assert again == (out / "scores.jsonl").read_text()


def prompts_of(data: PromptDataModule) -> list[str]:
    images: Any = data.predict_dataloader().dataset
    return [images[index]["prompt"] for index in range(len(images))]
