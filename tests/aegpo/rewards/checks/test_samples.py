from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aegpo.rewards.checks.samples import folder_samples, shapes_samples
from aegpo.rewards.shapes.judge import judge_images
from aegpo.shapes.prompts import parse


def test_of_each_four_scenes_only_the_first_is_right() -> None:
    samples = shapes_samples(4)
    assert samples.images.shape == (16, 3, 32, 32)
    assert samples.groups == [[4 * group + k for k in range(4)] for group in range(4)]
    assert {row["category"] for row in samples.metadata} == {"single", "count", "two", "relation"}
    verdicts = judge_images(samples.images, [parse(prompt) for prompt in samples.prompts])
    for group in samples.groups:
        first, *others = (verdicts[row].score for row in group)
        assert first > 0.95 > max(others)


def test_scenes_are_repeatable_and_grow_in_size_and_number() -> None:
    small, large = shapes_samples(9, seed=3), shapes_samples(9, size=64, seed=3)
    assert small.prompts == large.prompts and len(set(small.prompts)) == 9
    assert torch.equal(small.images, shapes_samples(9, seed=3).images)
    assert small.prompts != shapes_samples(9, seed=4).prompts
    assert large.images.shape[-2:] == (64, 64)
    assert large.images.min() >= 0 and large.images.max() <= 1
    assert (large.images[:, :, ::2, ::2] - small.images).abs().mean() < 0.05


def write(folder: Path, records: list[Any], sizes: dict[str, tuple[int, int]]) -> None:
    for gray, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (10 * gray, 0, 255)).save(folder / name)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def test_a_folder_is_read_with_its_prompts_together(tmp_path: Path) -> None:
    records = [
        {"file_name": f"{number}.png", "prompt": prompt, "count": number}
        for number, prompt in enumerate(["b", "a", "b"])
    ]
    write(tmp_path, records, {f"{number}.png": (6, 4) for number in range(3)})
    samples = folder_samples(tmp_path)
    assert samples.prompts == ["b", "b", "a"]
    assert samples.metadata == [{"count": 0}, {"count": 2}, {"count": 1}]
    assert samples.images.shape == (3, 3, 4, 6)
    assert np.allclose(samples.images[:, 0, 0, 0] * 255, [0, 20, 10])
    assert folder_samples(tmp_path, size=8).images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["{"], r"metadata.jsonl:1 is not JSON"),
        ([{"file_name": "0.png"}], r"jsonl:1 needs the fields 'file_name' and 'prompt'"),
        ([{"file_name": "2.png", "prompt": "a"}], r"no image .*2\.png"),
        ([{"file_name": "metadata.jsonl", "prompt": "a"}], r"no image that Pillow can read"),
        ([], r"has no line"),
        ([{"file_name": f"{n}.png", "prompt": "a"} for n in (0, 1)], r"2 sizes \(6 x 4, 8 x 4\)"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path: Path, records: list[Any], message: str) -> None:
    write(tmp_path, records, {"0.png": (6, 4), "1.png": (8, 4)})
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        folder_samples(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_without_an_index_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*jsonl; each of its lines"):
        folder_samples(tmp_path)
