"""What crosses: exactly what was meant, or one line that says why not."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aegpo.rewards.base import Scores
from aegpo.rewards.service.description import describe, read_description
from aegpo.rewards.service.wire import (
    Limits,
    UnusableMessage,
    answer_body,
    config_digest,
    decode_answer,
    decode_question,
    encode_question,
    said,
)
from aegpo.rewards.weighted_sum import WeightedSum

LIMITS = Limits(images=3, pixels=64, megabytes=1)


def png(mode: str = "RGB", size: tuple[int, int] = (4, 4), form: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format=form)
    return base64.b64encode(file.getvalue()).decode()


def request(**changes: Any) -> dict[str, Any]:
    return {"images": [png()], "prompts": ["a"], "metadata": [{}], "digest": None} | changes


def test_every_level_of_every_channel_arrives_as_it_was() -> None:
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    about = [{"count": 2, "of": ["a", 0.1], "text": "«ß»\n\x00"}]
    body = encode_question(pixels, ["«ß»"], about, "x")
    read = decode_question(body, Limits())
    assert torch.equal(read.images, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    assert (read.prompts, read.metadata, read.digest) == (["«ß»"], about, "x")
    assert b"pickle" not in body and json.loads(body)["images"][0].startswith("iVBOR")


@given(st.lists(st.floats(width=32), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_scores_arrive_to_the_bit(values: list[float]) -> None:
    sent = torch.tensor(values, dtype=torch.float32)
    text = json.dumps(answer_body(Scores(sent, {"part": sent.flip(0)}), ["w"]), allow_nan=False)
    read = decode_answer(text.encode(), len(values), ["part"])
    got = torch.tensor(read.scores, dtype=torch.float32)
    expected = sent.where(sent.isfinite(), torch.nan)
    assert torch.equal(got.nan_to_num(7e30), expected.nan_to_num(7e30))
    assert got.isnan().equal(expected.isnan()) and read.warnings == ["w"]
    assert math.isnan(read.parts["part"][0]) == math.isnan(read.scores[-1])


def bomb(width: int, height: int) -> str:
    """A PNG that says it is huge, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return len(data).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (b"\xff", 400, "a request is no JSON"),
        (b"[" * 100_000, 400, "a request is no JSON"),
        ([], 400, "no JSON object"),
        ({}, 400, "needs three lists"),
        (request(images="x"), 400, "needs three lists"),
        (request(prompts=[1]), 400, "needs three lists"),
        (request(metadata=["a"]), 400, "needs three lists"),
        (request(images=[], prompts=[], metadata=[]), 400, "one at least"),
        (request(prompts=["a", "b"]), 400, "1 images, 2 prompts and 1 metadata"),
        (request(images=[png()] * 4, prompts=["a"] * 4, metadata=[{}] * 4), 413, "at most 3"),
        (request(digest=3), 400, "digest must be a text"),
        (request(images=["not base64!"]), 400, "image 0 is no PNG"),
        (request(images=["AAAA"]), 400, "image 0 is no PNG"),
        (request(images=[png()[:40]]), 400, "image 0 is no PNG"),
        (request(images=[png(form="JPEG")]), 400, "image 0 is no PNG"),
        (request(images=[png("RGBA")]), 400, "PNG of mode RGBA; send 8-bit RGB"),
        (request(images=[png("I;16")]), 400, "PNG of mode I"),
        (request(images=[png(size=(9, 9))]), 413, "9 x 9 pixels; at most 64"),
        (request(images=[bomb(60_000, 60_000)]), 413, "60000 x 60000|no PNG"),
        (request(images=[bomb(4, 4)]), 400, "image 0 is no PNG"),
        (
            request(images=[png(), png(size=(2, 4))], prompts=["a"] * 2, metadata=[{}] * 2),
            400,
            "2 x 4 and 4 x 4 were sent; send one size",
        ),
    ],
)
def test_a_request_that_cannot_be_is_one_line(given: Any, status: int, message: str) -> None:
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    with pytest.raises(UnusableMessage, match=message) as refused:
        decode_question(body, LIMITS)
    assert refused.value.status in (status, 400) and "\n" not in str(refused.value)


@given(st.binary(max_size=60), st.integers(0, 300), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_no_damage_to_a_request_raises_anything_else(junk: bytes, at: int, length: int) -> None:
    body = json.dumps(request()).encode()
    with contextlib.suppress(UnusableMessage):
        decode_question(body[:at] + junk + body[at + length :], LIMITS)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("<html>", "its answer is no JSON"),
        ("3", "no JSON object"),
        ('{"scores": [1]}', "1 scores for 2 images"),
        ('{"scores": [1, "2"]}', "no list of numbers as scores"),
        ('{"scores": [1, true]}', "no list of numbers as scores"),
        ('{"scores": null}', "no list of numbers as scores"),
        ('{"scores": [1, 2]}', "lacks the part 'p'"),
        ('{"scores": [1, 2], "parts": {"p": [1]}}', "1 scores of part 'p' for 2 images"),
        ('{"scores": [1, 2], "parts": [], "warnings": []}', "parts that are no mapping"),
    ],
)
def test_a_reply_that_cannot_be_is_one_line(reply: str, message: str) -> None:
    with pytest.raises(UnusableMessage, match=message):
        decode_answer(reply.encode(), 2, ["p"])


def test_what_cannot_be_sent_is_said() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    for value in (torch.zeros(1), float("nan"), object()):
        with pytest.raises(UnusableMessage, match="cannot be sent as JSON"):
            encode_question(pixels, ["a"], [{"it": value}], None)


def test_the_digest_is_of_the_configuration_and_of_no_secret_in_it() -> None:
    config = {"class_path": "a.B", "init_args": {"gain": 1.0, "api_key": "one"}}
    same = {"init_args": {"api_key": "two", "gain": 1.0}, "class_path": "a.B"}
    other = {"class_path": "a.B", "init_args": {"gain": 1.5, "api_key": "one"}}
    assert config_digest(config) == config_digest(same) != config_digest(other)


def test_an_error_is_one_short_line_whatever_it_is() -> None:
    assert said(b'{"error": "one\\n two"}') == "one two"
    assert said(b"<h1>no\n</h1>") == "<h1>no </h1>"
    assert len(said(b"x" * 5000)) == 200 and said(b"\xff") and said(b"[1]") == "b'[1]'"


def test_a_description_is_read_as_it_was_written() -> None:
    from served_rewards import Mean

    reward = WeightedSum([Mean(), Mean()], [0.5, 0.0])
    about = describe(reward, "d", Limits(images=7))
    read = read_description(json.dumps(about, allow_nan=False).encode())
    assert read.parts == {"mean": 0.5, "mean_2": 0.0} and read.range == (0.0, 1.5)
    assert (read.name, read.digest, read.images, read.groupwise) == ("weighted_sum", "d", 7, False)
    reward.range = (0.0, math.inf)
    about = describe(reward, "d", Limits())
    assert read_description(json.dumps(about, allow_nan=False).encode()).range is None
    for text in ("", "{}", "[]", '{"protocol": 1}', '{"protocol": 1, "digest": "a", "range": 3}'):
        with pytest.raises(UnusableMessage, match="is no service"):
            read_description(text.encode())
    with pytest.raises(UnusableMessage, match="speaks protocol 2"):
        read_description(b'{"protocol": 2, "digest": "a"}')
