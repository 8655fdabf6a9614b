from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from aegpo.rewards.jpeg import JpegCompressibility, JpegIncompressibility, jpeg_kilobytes


def images() -> torch.Tensor:
    """A gray, a gradient and a noise image, 32 x 24, of whole 8-bit values."""
    generator = torch.Generator().manual_seed(0)
    gray = torch.full((3, 32, 24), 128)
    gradient = torch.arange(24).mul(10).expand(3, 32, 24)
    noise = torch.randint(0, 256, (3, 32, 24), generator=generator)
    return torch.stack([gray, gradient, noise]).float() / 255


def test_equals_the_files_that_pillow_writes() -> None:
    expected = []
    for image in images():
        pixels = np.rint(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=95)
        expected.append(len(file.getvalue()) / 1000)
    metadata: list[dict] = [{}] * 3
    bigger = JpegIncompressibility()(images(), ["a", "b", "c"], metadata)
    assert bigger.dtype == torch.float32
    assert bigger.tolist() == pytest.approx(expected)
    assert 0.3 < bigger[0] < bigger[1] < bigger[2] < 10  # kB, not bytes
    smaller = JpegCompressibility()(images(), ["a", "b", "c"], metadata)
    assert torch.equal(smaller, -bigger)


def test_prompts_and_batch_do_not_matter() -> None:
    reward = JpegIncompressibility()
    together = reward(images(), ["x", "y", "z"], [{}] * 3)
    alone = torch.cat([reward(image[None], ["other"], [{}]) for image in images()])
    assert torch.equal(together, alone)


def test_lower_quality_is_smaller() -> None:
    assert bool((jpeg_kilobytes(images(), 50) <= jpeg_kilobytes(images(), 95)).all())
    low = JpegIncompressibility(quality=50)(images(), [""] * 3, [{}] * 3)
    assert torch.equal(low, jpeg_kilobytes(images(), 50))


def test_values_beyond_the_range_are_clipped() -> None:
    wild = images() * 4 - 1
    assert torch.equal(jpeg_kilobytes(wild), jpeg_kilobytes(wild.clamp(0, 1)))


def test_a_broken_image_is_missing_and_the_others_are_not() -> None:
    broken = images()
    broken[1, 0, 3, 3] = float("nan")
    sizes = jpeg_kilobytes(broken)
    assert sizes.isnan().tolist() == [False, True, False]
    assert torch.equal(sizes[[0, 2]], jpeg_kilobytes(images())[[0, 2]])


@pytest.mark.parametrize("reward", [JpegCompressibility, JpegIncompressibility])
def test_refuses_quality(reward: type) -> None:
    with pytest.raises(ValueError, match="quality=0"):
        reward(quality=0)
