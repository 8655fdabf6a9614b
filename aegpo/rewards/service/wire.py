"""What crosses between a served reward and whoever asks: JSON, the images in it as PNG in base64.

Nothing is pickled. A request is ``{"images": [...], "prompts": [...], "metadata": [...], "digest":
...}``, a reply ``{"scores": [...], "parts": {name: [...]}, "warnings": [...]}`` with null for what
is missing, an error ``{"error": "one line"}``. docs/rewards_service.md has the whole of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aegpo.rewards.base import Scores
from aegpo.utilities.secrets import without_secrets

PROTOCOL = 1
"""Raised when older and newer ends no longer understand each other."""

METADATA_PATH, SCORE_PATH, HEALTH_PATH = "/reward", "/score", "/health"


class UnusableMessage(ValueError):
    """A request or a reply that is not of the protocol; the text says in one line why.

    Args:
        text: What is wrong.
        status: HTTP status with which a server answers it.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """How much one request may hold.

    Args:
        images: Images.
        pixels: Pixels of an image, width times height.
        megabytes: Length of the body, in 10⁶ bytes.
    """

    images: int = 256
    pixels: int = 2048 * 2048
    megabytes: int = 256


@dataclass(frozen=True, eq=False)
class Question:
    """What a reward is asked.

    Args:
        images: Shape (N, 3, H, W) in [0, 1], multiples of 1/255.
        prompts: N texts.
        metadata: N dicts.
        digest: Configuration that the reward is taken to have; None for any.
    """

    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]
    digest: str | None


@dataclass(frozen=True)
class Answer:
    """What a reward said.

    Args:
        scores: N numbers, NaN where one is missing.
        parts: N numbers by component.
        warnings: What was warned of on the other side, a line each.
    """

    scores: list[float]
    parts: dict[str, list[float]]
    warnings: list[str]


def config_digest(config: Mapping[str, Any]) -> str:
    """A fingerprint of a reward's configuration, without the secrets in it.

    Args:
        config: Class path and arguments, plain values.

    Returns:
        The first 16 hexadecimal digits of the SHA-256 of its JSON.
    """
    text = json.dumps(without_secrets(dict(config)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_question(
    pixels: npt.NDArray[np.uint8],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    digest: str | None,
) -> bytes:
    """Write a request.

    Args:
        pixels: Shape (N, H, W, 3).
        prompts: N texts.
        metadata: N dicts of plain values.
        digest: Configuration that the reward must have; None for any.

    Returns:
        The body.

    Raises:
        UnusableMessage: If metadata is not JSON.
    """
    images = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG", compress_level=1)  # fast; lossless anyway
        images.append(base64.b64encode(file.getvalue()).decode("ascii"))
    try:
        body = json.dumps(
            {
                "images": images,
                "prompts": list(prompts),
                "metadata": [dict(one) for one in metadata],
                "digest": digest,
            },
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise UnusableMessage(
            f"metadata of a prompt cannot be sent as JSON ({error}); leave numbers, texts, lists "
            "and mappings in it"
        ) from None
    return body.encode()


def decode_question(body: bytes, limits: Limits) -> Question:
    """Read a request.

    Args:
        body: As `encode_question` writes it.
        limits: How much it may hold.

    Returns:
        The request.

    Raises:
        UnusableMessage: If it is not of the protocol, or holds too much.
    """
    read = _mapping(body, "a request")
    images: list[str] = _list_of(read.get("images"), str)
    prompts: list[str] = _list_of(read.get("prompts"), str)
    metadata: list[dict[str, Any]] = _list_of(read.get("metadata"), dict)
    digest = read.get("digest")
    if not len(images) == len(prompts) == len(metadata) or not images:
        raise UnusableMessage(
            f"{len(images)} images, {len(prompts)} prompts and {len(metadata)} metadata were sent; "
            "send as many of each, one at least"
        )
    if len(images) > limits.images:
        raise UnusableMessage(
            f"{len(images)} images were sent; at most {limits.images} are taken at a time", 413
        )
    if not isinstance(digest, str | None):
        raise UnusableMessage("digest must be a text or null")
    pixels = [_decoded(text, row, limits.pixels) for row, text in enumerate(images)]
    sizes = sorted({f"{picture.shape[1]} x {picture.shape[0]}" for picture in pixels})
    if len(sizes) > 1:
        raise UnusableMessage(f"images of {' and '.join(sizes[:3])} were sent; send one size")
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return Question(stacked.float() / 255, prompts, metadata, digest)


def answer_body(scores: Scores, warnings: Sequence[str]) -> dict[str, Any]:
    """Put scores into the form of a reply; what is not finite is null.

    Args:
        scores: The scores.
        warnings: What was warned of.

    Returns:
        Plain values.
    """
    return {
        "scores": _nullable(scores.total),
        "parts": {name: _nullable(part) for name, part in scores.parts.items()},
        "warnings": list(warnings),
    }


def decode_answer(body: bytes, count: int, part_names: Sequence[str]) -> Answer:
    """Read a reply.

    Args:
        body: Of a reply.
        count: Number of images that were asked about.
        part_names: Components that it must have.

    Returns:
        The reply.

    Raises:
        UnusableMessage: If it is not of the protocol, or of another number of images.
    """
    read = _mapping(body, "its answer")
    parts, warned = read.get("parts", {}), read.get("warnings", [])
    if not isinstance(parts, dict) or not isinstance(warned, list):
        raise UnusableMessage("its answer has parts that are no mapping or warnings that are none")
    scores = _numbers(read.get("scores"), count, "scores")
    missing = [name for name in part_names if name not in parts]
    if missing:
        raise UnusableMessage(f"its answer lacks the part {missing[0]!r}")
    return Answer(
        scores,
        {name: _numbers(parts[name], count, f"scores of part {name!r}") for name in part_names},
        [str(line) for line in warned],
    )


def said(body: bytes) -> str:
    """What an error's body says, or its beginning, on one line."""
    try:
        read = json.loads(body)
        text = read["error"] if isinstance(read, dict) else body
    except (ValueError, KeyError, RecursionError):
        text = body.decode("utf-8", "replace")
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def _mapping(body: bytes, what: str) -> dict[str, Any]:
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        raise UnusableMessage(f"{what} is no JSON") from None
    if not isinstance(read, dict):
        raise UnusableMessage(f"{what} is no JSON object")
    return read


def _list_of(value: Any, kind: type) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise UnusableMessage(
            "a request needs three lists: images (PNG in base64), prompts (texts), metadata (dicts)"
        )
    return value


def _decoded(text: str, row: int, most: int) -> npt.NDArray[np.uint8]:
    """The pixels of a PNG, (H, W, 3); its size is looked at before it is unpacked."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as png:
            if png.width * png.height > most:
                raise UnusableMessage(
                    f"image {row} has {png.width} x {png.height} pixels; at most {most} are taken",
                    413,
                )
            if png.mode != "RGB":
                raise UnusableMessage(f"image {row} is a PNG of mode {png.mode}; send 8-bit RGB")
            return np.array(png)
    except UnusableMessage:
        raise
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UnusableMessage(f"image {row} is no PNG in base64 that can be read") from None


def _nullable(values: Tensor) -> list[float | None]:
    """The numbers; the 64 bits of each hold those 32 that it had."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _numbers(values: Any, count: int, what: str) -> list[float]:
    if not isinstance(values, list) or not all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values
    ):
        raise UnusableMessage(f"its answer has no list of numbers as {what}")
    if len(values) != count:
        raise UnusableMessage(f"its answer has {len(values)} {what} for {count} images")
    return [math.nan if value is None else float(value) for value in values]
