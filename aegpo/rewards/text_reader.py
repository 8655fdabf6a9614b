"""Reading the text in pictures."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt


class TextReader(abc.ABC):
    """Reads what is written in pictures."""

    @abc.abstractmethod
    def read(self, images: npt.NDArray[np.uint8]) -> list[str]:
        """Read pictures, each on its own.

        Args:
            images: RGB pictures, uint8, shape (N, H, W, 3).

        Returns:
            N texts, the lines of a picture joined from top to bottom; empty where there is none.
        """

    def prepare(self) -> None:  # noqa: B027  # a reader may have nothing to load
        """Load what reading takes; raises if it cannot be had. Called once, before training."""


class RapidOCRReader(TextReader):
    """PP-OCR on the CPU by way of RapidOCR, whose package holds the models: nothing is fetched.

    Detection and recognition as in flow_grpo, without the classifier that turns text upside down;
    the models are newer ones than flow_grpo's PaddleOCR 2.9.

    Args:
        num_threads: CPU threads of a call; None leaves it to ONNX Runtime, which takes all cores:
            set it where several processes share a machine.

    Raises:
        ValueError: If `num_threads` is below 1.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads={num_threads} must be at least 1, or null for all cores")
        self.num_threads = num_threads
        self._engine: Any = None

    def prepare(self) -> None:
        """Load the models.

        Raises:
            ModuleNotFoundError: If rapidocr or onnxruntime is not installed.
            RuntimeError: If the models cannot be loaded.
        """
        if self._engine is not None:
            return
        try:
            import onnxruntime  # noqa: F401  # RapidOCR finds out only at the first picture
            from rapidocr import RapidOCR
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"reading text needs {error.name}, which is not installed; run: "
                "pip install 'aegpo[ocr]'"
            ) from error
        params: dict[str, Any] = {"Global.use_cls": False, "Global.log_level": "critical"}
        if self.num_threads is not None:
            params["EngineConfig.onnxruntime.intra_op_num_threads"] = self.num_threads
        engine = RapidOCR(params=params)
        # RapidOCR loads a model when it first needs it, and a failure then looks like an empty
        # picture. So it has to read something before it is believed.
        if not _lines(engine, _sample()):
            raise RuntimeError(
                "RapidOCR could not read a line of plain text, so its models are missing or "
                "damaged; run: pip install --force-reinstall rapidocr onnxruntime"
            )
        self._engine = engine

    def read(self, images: npt.NDArray[np.uint8]) -> list[str]:
        """Read pictures one by one; see `TextReader.read`."""
        self.prepare()
        return [" ".join(_lines(self._engine, image)) for image in images]


def _lines(engine: Any, image: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    found = engine(np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV's order, BGR
    return getattr(found, "txts", None) or ()


def _sample() -> npt.NDArray[np.uint8]:
    """A picture with a word on it."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(picture).text((32, 24), "READY", "black", ImageFont.load_default(40))
    return np.asarray(picture)
