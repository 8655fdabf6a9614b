from __future__ import annotations

import open_clip
import pytest
import torch
from tiny_rewards import pil_images, tiny_images
from torchvision import transforms
from transformers.models.clip import CLIPImageProcessorPil

from aegpo.rewards.learned.clip_pixels import clip_pixels

# One level of 8 bits in the units of the result: the standard deviations are at least 0.26.
LEVEL = 1 / 255 / 0.26

# Shapes on which the libraries agree about the middle: they cut off 0, 13, 13, 64 and 12 pixels.
SHAPES = [(96, 96), (44, 62), (62, 44), (50, 150), (20, 28)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_crop_is_what_the_processors_make_of_pil_images(height: int, width: int) -> None:
    images = tiny_images(height, width)
    pixels = clip_pixels(images, 32, "crop")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    published = processor(pil_images(images), return_tensors="pt").pixel_values
    transform = transforms.Compose(  # of OpenAI's CLIP and of ImageReward
        [
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(processor.image_mean, processor.image_std),
        ]
    )
    for expected in (published, torch.stack([transform(image) for image in pil_images(images)])):
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1.05 * LEVEL)
        assert (pixels - expected).abs().mean() < 0.3 * LEVEL


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pad_is_what_open_clip_makes_of_pil_images(height: int, width: int) -> None:
    images = tiny_images(height, width)
    transform = open_clip.image_transform(32, is_train=False, resize_mode="longest")
    expected = torch.stack([transform(image) for image in pil_images(images)])
    pixels = clip_pixels(images, 32, "pad")
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1.05 * LEVEL)
    assert (pixels - expected).abs().mean() < 0.3 * LEVEL


def test_an_image_of_the_right_size_is_only_normalized() -> None:
    images = tiny_images(32, 32)
    for fit in ("crop", "pad"):
        pixels = clip_pixels(images, 32, fit, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        expected = (images[:, 1] - 0.4) / 0.3
        torch.testing.assert_close(pixels[:, 1], expected)


def test_a_very_long_image_keeps_a_row() -> None:
    images = tiny_images(2, 400)
    assert clip_pixels(images, 32, "pad").shape == (5, 3, 32, 32)
