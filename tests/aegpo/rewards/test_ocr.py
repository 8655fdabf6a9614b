from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from aegpo.rewards.ocr import OCRAccuracy, quoted_text, text_accuracy
from aegpo.rewards.text_reader import RapidOCRReader, TextReader


class Canned(TextReader):
    """Reads out, for each picture, the text that its red value stands for."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.seen: list[int] = []

    def read(self, images: np.ndarray) -> list[str]:
        assert images.dtype == np.uint8 and images.shape[-1] == 3
        self.seen = [int(image[0, 0, 0]) for image in images]
        return [self.texts[red] for red in self.seen]


def plain_images(count: int) -> torch.Tensor:
    """Image i has the 8-bit red value i."""
    images = torch.zeros(count, 3, 4, 4)
    images[:, 0] = torch.arange(count).view(-1, 1, 1) / 255
    return images


def write(*lines: str) -> torch.Tensor:
    """A white picture (3, 256, 384) with lines of blue text."""
    picture = Image.new("RGB", (384, 256), "white")
    for row, line in enumerate(lines):
        font = ImageFont.load_default(40)
        ImageDraw.Draw(picture).text((30, 40 + 90 * row), line, (0, 0, 160), font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("target", "text", "expected"),
    [
        ("OPEN", "open", 1),
        ("New York", "NEWYORK", 1),
        ("cat", "con cat enate", 1),  # a part of what was read
        ("abcd", "abxd", 3 / 4),  # one replaced
        ("abcd", "acd", 3 / 4),  # one missing
        ("abcd", "a b x c d", 3 / 4),  # one inserted
        ("abcd", "", 0),
        ("abcd", "badc", 1 / 4),  # two swaps: three edits
        ("ab", "something else entirely", 0),  # capped: never below 0
        ("kitten", "sitting", 1 - 3 / 6),  # the textbook's example
    ],
)
def test_accuracy_by_hand(target: str, text: str, expected: float) -> None:
    assert text_accuracy(target, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('A sign that says "Open 24 h", lit', "Open 24 h"),
        ('"one" and "two"', "one"),
        ("a “curly” one", "curly"),
        ("no quotes, it's plain", None),
        ('only "half', None),
        ('nothing " " in it', None),
        ("", None),
    ],
)
def test_the_target_stands_in_the_first_quotes(prompt: str, expected: str | None) -> None:
    assert quoted_text(prompt) == expected


def test_images_are_scored_against_their_own_targets_in_order() -> None:
    reward = OCRAccuracy(reader=Canned("stop", "go", "abxd"))
    prompts = ['a "GO" sign', 'a "go" sign', 'not "this"']
    scores = reward(plain_images(3), prompts, [{}, {}, {"target": "ab cd"}])
    assert scores.dtype == torch.float32
    # "go" against "stop": 3 edits, capped at 2; the metadata wins over the quotes.
    assert scores.tolist() == [0.0, 1.0, 0.75]
    keyed = OCRAccuracy("words", Canned("yes"))
    assert keyed(plain_images(1), ['a "no"'], [{"words": "YES", "target": "no"}]).item() == 1


def test_what_has_no_target_or_is_broken_is_missing_and_not_read() -> None:
    reader = Canned("a", "b", "c", "d")
    images = plain_images(4)
    images[3, 2, 1, 1] = float("nan")
    with pytest.warns(UserWarning, match=r"1 of 4 prompts .*'target'.* the first is 'a sign'"):
        scores = OCRAccuracy(reader=reader)(
            images, ['"a"', "a sign", '"x"', '"d"'], [{} for _ in range(4)]
        )
    assert scores.isnan().tolist() == [False, True, False, True]
    assert scores[[0, 2]].tolist() == [1.0, 0.0]
    assert reader.seen == [0, 2]


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime", "rapidfuzz"])
def test_a_missing_package_is_named_before_training(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'aegpo\[ocr\]'") as caught:
        OCRAccuracy().setup(torch.device("cpu"))
    assert package in str(caught.value) and "\n" not in str(caught.value)


def test_an_engine_that_reads_nothing_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __init__(self, params: dict[str, Any]) -> None:
            assert params["EngineConfig.onnxruntime.intra_op_num_threads"] == 2

        def __call__(self, image: np.ndarray) -> object:
            return object()

    for name, content in (("rapidocr", {"RapidOCR": Blind}), ("onnxruntime", {})):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
        vars(sys.modules[name]).update(content)
    with pytest.raises(RuntimeError, match="could not read a line of plain text"):
        RapidOCRReader(num_threads=2).prepare()
    with pytest.raises(ValueError, match="num_threads=0"):
        RapidOCRReader(num_threads=0)


def test_real_letters_are_read() -> None:
    reward = OCRAccuracy(reader=RapidOCRReader(num_threads=1))
    reward.setup(torch.device("cpu"))
    images = torch.stack(
        [write("Hello World", "Again"), write("Helicopter"), torch.ones(3, 256, 384)]
    )
    scores = reward(images, ['"hello world again"', '"hello"', '"hello"'], [{}] * 3)
    assert scores[0] == 1 and scores[2] == 0
    assert 0 <= scores[1] < 1
