"""Writes an evaluation: JSON and CSV for programs, Markdown, a page and a grid for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aegpo.evaluation.documents import CSV_HEADER, csv_rows, markdown, page
from aegpo.evaluation.suites import Suite
from aegpo.evaluation.tables import blocks
from aegpo.utilities.files import replacing
from aegpo.utilities.images import save_png, side_by_side
from aegpo.utilities.tables import markdown_table, write_csv
from lightning_modules.commands.evaluate.drawing import Drawing

GRID_PROMPTS = 16


def write(
    drawing: Drawing, prompts: Suite, result: Mapping[str, Any], others: Mapping[str, Any]
) -> None:
    """Write the result for programs and for people.

    Args:
        drawing: Where the images are, and the results go.
        prompts: The suite.
        result: The evaluation.
        others: Other evaluations to show beside it, by name.
    """
    folder = drawing.folder
    with replacing(folder / "results.json") as partial:
        partial.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    results = {folder.resolve().name: result, **others}
    write_csv(folder / "results.csv", CSV_HEADER, csv_rows(results))
    with replacing(folder / "results.md") as partial:
        partial.write_text(markdown(results), encoding="utf-8")
    _write_pictures(drawing, prompts, results)


def _write_pictures(drawing: Drawing, prompts: Suite, results: Mapping[str, Any]) -> None:
    """Write the page and the grid, with the first image of the first prompts."""
    folder = drawing.folder
    result = next(iter(results.values()))
    names = [model["name"] for model in result["models"]]
    shown = range(min(GRID_PROMPTS, len(prompts.prompts)))
    gallery = [
        (prompts.prompts[row], [(name, drawing.image_file(name, row, 0)) for name in names])
        for row in shown
    ]
    with replacing(folder / "index.html") as partial:
        partial.write_bytes(page(results, gallery))
    images = {
        name: torch.stack([_pixels(drawing.image_file(name, row, 0)) for row in shown])
        for name in names
    }
    captions = {name: [prompts.prompts[row] for row in shown] for name in names}
    save_png(side_by_side(images, captions), folder / "grid.png")


def _pixels(file: Path) -> torch.Tensor:
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def told(result: Mapping[str, Any], others: Mapping[str, Any], out: str) -> list[str]:
    """Say what the screen shows: the first tables, and where everything is.

    Args:
        result: The evaluation.
        others: Other evaluations beside it, by name.
        out: The folder as it was given.

    Returns:
        Lines.
    """
    lines: list[str] = []
    for title, header, rows in list(blocks({out: result, **others}))[:2]:
        lines += [title, markdown_table(header, rows), ""]
    return [*lines, f"{out}: index.html, results.md, results.csv, results.json, grid.png, images"]
