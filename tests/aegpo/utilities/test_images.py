"""Where an image lands in the grid, pixel by pixel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aegpo.utilities.images import image_grid, save_png, to_picture, to_pixels

COLORS = torch.eye(3)[:, :, None, None]  # red, green, blue


def test_images_stand_in_rows_with_room_for_their_captions() -> None:
    grid = image_grid(COLORS.expand(3, 3, 2, 2), ["", "", ""], columns=2, side=8)
    assert grid.size == (2 * (8 + 4), 2 * (8 + 40))
    pixels = np.asarray(grid)
    assert (pixels[:8, :8] == (255, 0, 0)).all()
    assert (pixels[:8, 12:20] == (0, 255, 0)).all()
    assert (pixels[48:56, :8] == (0, 0, 255)).all()
    assert (pixels[48:, 12:] == 255).all()  # the fourth place is empty
    assert (pixels[:8, 8:12] == 255).all()


def test_captions_stand_below_their_image() -> None:
    images = COLORS[:1].expand(2, 3, 2, 2)
    pixels = np.asarray(image_grid(images, ["a red circle", ""], columns=2, side=32))
    assert (pixels[32:, :36] < 128).any()
    assert (pixels[32:, 36:] == 255).all()
    assert (pixels[:32, :32] == (255, 0, 0)).all()


def test_long_captions_are_wrapped_and_shown_whole() -> None:
    black = torch.zeros(2, 3, 2, 2)
    longest = " / ".join(["0.25"] * 6) + "\na yellow triangle left of a cyan cross and more of it"
    grid = image_grid(black, [longest, "a"], columns=2, side=64)
    lines = (grid.size[1] - 64) / 13
    assert lines > 5  # the row grew
    pixels = np.asarray(grid)[64:]
    assert (pixels[-20:, :66] < 128).any()  # down to the last line
    assert (pixels[:, 66:68] == 255).all()  # and no further to the right than its image
    assert (pixels[20:, 68:] == 255).all()


def test_a_caption_without_end_ends_in_an_ellipsis() -> None:
    grid = image_grid(torch.zeros(1, 3, 2, 2), ["word " * 500], columns=1, side=64)
    once = image_grid(torch.zeros(1, 3, 2, 2), ["x" * 100_000], columns=1, side=64)
    assert grid.size == once.size == (68, 64 + 9 * 13 + 4)


def test_pixels_are_enlarged_without_smoothing_and_keep_their_shape() -> None:
    image = torch.zeros(1, 3, 2, 4)
    image[..., 1::2] = 2.0  # beyond 1 is white
    pixels = np.asarray(image_grid(image, [""], side=8))[:4, :8]
    assert pixels.shape == (4, 8, 3)
    assert set(np.unique(pixels)) == {0, 255}
    assert (pixels[:, 2:4] == 255).all() and (pixels[:, :2] == 0).all()


def test_every_image_needs_its_caption() -> None:
    with pytest.raises(ValueError):
        image_grid(torch.zeros(2, 3, 2, 2), ["one"])


def test_pictures_and_pixels_round_alike() -> None:
    levels = torch.arange(256) / 255
    images = torch.stack([levels.view(1, 16, 16).expand(3, -1, -1), torch.full((3, 16, 16), 1.5)])
    pixels, finite = to_pixels(images)
    assert finite == [True, True] and pixels.shape == (2, 16, 16, 3)
    assert (pixels[0].reshape(256, 3) == np.arange(256)[:, None]).all() and (pixels[1] == 255).all()
    assert (np.asarray(to_picture(images[0])) == pixels[0]).all()
    images[1, 0, 3, 3] = float("nan")
    assert to_pixels(images)[1] == [True, False]


FULL = """
import resource, sys
from pathlib import Path
import torch
from aegpo.utilities.images import save_png, to_picture
noise = to_picture(torch.rand(3, 64, 64))
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    save_png(noise, Path(sys.argv[1]))
except OSError as error:
    print(error.strerror)
"""


def test_a_picture_that_does_not_fit_on_the_disk_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    save_png(to_picture(COLORS[0].expand(3, 4, 4)), file, {"prompt": "red"})
    before = file.read_bytes()
    assert b"prompt" in before
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "File too large\n"
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
