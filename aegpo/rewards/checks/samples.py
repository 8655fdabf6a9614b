"""Images with prompts and metadata to try a reward on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aegpo.shapes.prompts import CATEGORIES, Scene, near_misses
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split


@dataclass(frozen=True, eq=False)
class RewardSamples:
    """What a reward is given: images, the prompt of each and its metadata.

    Args:
        images: Shape (N, 3, H, W) in [0, 1].
        prompts: N texts; the images of one prompt stand together.
        metadata: N dicts.
    """

    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.prompts)

    @property
    def groups(self) -> list[list[int]]:
        """Rows of each run of images with the same prompt."""
        runs = itertools.groupby(range(len(self)), key=self.prompts.__getitem__)
        return [list(rows) for _, rows in runs]

    def select(self, rows: Sequence[int]) -> RewardSamples:
        """Pick rows, in the order given."""
        return replace(self.with_texts_of(rows), images=self.images[list(rows)])

    def with_texts_of(self, rows: Sequence[int]) -> RewardSamples:
        """Give each image the prompt and the metadata of another row."""
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            metadata=[self.metadata[row] for row in rows],
        )


def shapes_samples(num_prompts: int = 4, size: int | None = None, seed: int = 0) -> RewardSamples:
    """Draw scenes of the Shapes world: four images a prompt, the first right, the others not quite.

    Args:
        num_prompts: Prompts; the categories take turns.
        size: Side in pixels to which the 32 x 32 scenes are enlarged; None for as they are.
        seed: Seed of the drawing and of the choice of prompts.

    Returns:
        4 * num_prompts samples; metadata as in the bundled prompts.
    """
    scenes = _held_out_scenes(num_prompts, seed)
    shown = [
        (scene, picture) for scene in scenes for picture in (scene, *near_misses(scene).values())
    ]
    return RewardSamples(
        images=_resize(render_batch([picture for _, picture in shown], seed), size),
        prompts=[scene.text for scene, _ in shown],
        metadata=[{"category": scene.category, "split": "heldout"} for scene, _ in shown],
    )


def drawings(
    num_prompts: int = 24, images_per_prompt: int = 8, size: int | None = None, seed: int = 0
) -> RewardSamples:
    """Draw scenes of the Shapes world several times each, all of them right.

    They differ in the places and sizes of the objects, a little in color and paper: in what a
    reward about the prompt has no reason to care for.

    Args:
        num_prompts: Prompts; the categories take turns.
        images_per_prompt: Drawings of each.
        size: Side in pixels to which the 32 x 32 scenes are enlarged; None for as they are.
        seed: Seed of the drawing and of the choice of prompts.

    Returns:
        num_prompts * images_per_prompt samples; metadata as in the bundled prompts.
    """
    scenes = [one for one in _held_out_scenes(num_prompts, seed) for _ in range(images_per_prompt)]
    return RewardSamples(
        images=_resize(render_batch(scenes, seed), size),
        prompts=[scene.text for scene in scenes],
        metadata=[{"category": scene.category, "split": "heldout"} for scene in scenes],
    )


def folder_samples(folder: str | Path, size: int | None = None) -> RewardSamples:
    """Read a folder of images with a `metadata.jsonl`, the layout of Hugging Face's ImageFolder.

    Each line of the file is an object with `file_name`, `prompt` and whatever the reward wants to
    find in the metadata.

    Args:
        folder: The folder.
        size: Side in pixels of the square to which all images are resized; None for as they are,
            which must then be one size.

    Returns:
        One sample a line, sorted so that the images of a prompt stand together.

    Raises:
        FileNotFoundError: If the folder has no `metadata.jsonl`, or an image is missing.
        ValueError: If a line or an image cannot be read, or the sizes differ.
    """
    index = Path(folder) / "metadata.jsonl"
    if not index.is_file():
        raise FileNotFoundError(
            f"there is no {index}; each of its lines is an object such as "
            '{"file_name": "0.png", "prompt": "a red circle"}'
        )
    lines = index.read_text(encoding="utf-8").splitlines()
    records = [_read_line(line, f"{index}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise ValueError(f"{index} has no line")
    first = {record["prompt"]: row for row, record in reversed(list(enumerate(records)))}
    records.sort(key=lambda record: first[record["prompt"]])
    images = [
        _resize(_read_image(Path(folder) / record["file_name"])[None], size) for record in records
    ]
    sizes = sorted({f"{image.shape[-1]} x {image.shape[-2]}" for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"the images of {folder} have {len(sizes)} sizes ({', '.join(sizes[:3])})"
            "; give a size to which all are resized"
        )
    return RewardSamples(
        images=torch.cat(images),
        prompts=[record["prompt"] for record in records],
        metadata=[_without(record, ("file_name", "prompt")) for record in records],
    )


def _held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes that training never sees, all different; the categories take turns while they last."""
    rng = np.random.default_rng(seed)
    left = [[one for one in split("heldout") if one.category == name] for name in CATEGORIES]
    if count > (most := sum(map(len, left))):
        raise ValueError(f"{count} prompts were asked for; the Shapes world holds out {most}")
    scenes: list[Scene] = []
    for scenes_left in itertools.cycle(left):
        if len(scenes) == count:
            break
        if scenes_left:
            scenes.append(scenes_left.pop(int(rng.integers(len(scenes_left)))))
    return scenes


def _read_line(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error.msg})") from error
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), str) for key in ("file_name", "prompt")
    ):
        raise ValueError(f"{place} needs the fields 'file_name' and 'prompt', both texts")
    return record


def _read_image(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image {path}") from error
    except OSError as error:
        raise ValueError(f"{path} is no image that Pillow can read") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[-2:] == (size, size):
        return images
    resized = torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1)


def _without(record: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}
