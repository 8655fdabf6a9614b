"""Text rendering: is the text of the prompt written in the picture?

The reward of Flow-GRPO (arXiv 2505.05470) for its OCR task, there with PaddleOCR.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.text_reader import RapidOCRReader, TextReader
from aegpo.utilities.images import to_pixels


def text_accuracy(target: str, text: str) -> float:
    """How much of a text was read: 1 minus the edit distance in units of the target's length.

    Case and white space do not count, and other text around the target costs nothing.

    Args:
        target: What should be written; at least one letter.
        text: What was read.

    Returns:
        1 if the target is part of the text, else 1 minus the Levenshtein distance of the two,
        which is capped at the target's length; in [0, 1].
    """
    from rapidfuzz.distance import Levenshtein

    target, text = _plain(target), _plain(text)
    if target in text:
        return 1.0
    return 1 - min(Levenshtein.distance(target, text), len(target)) / len(target)


def quoted_text(prompt: str) -> str | None:
    """Text between the first pair of double quotes, or None if there is no letter in one.

    Args:
        prompt: The prompt; straight and typographic quotes are the same.

    Returns:
        The text as it stands there.
    """
    parts = prompt.replace("“", '"').replace("”", '"').split('"', 2)
    return parts[1] if len(parts) == 3 and _plain(parts[1]) else None


class OCRAccuracy(Reward):
    """Share of the wanted text that can be read in the image, in [0, 1].

    The wanted text is the metadata field `target_key` of the prompt or, without one, what stands
    between the first pair of double quotes: ``a sign that says "OPEN"``. An image whose prompt has
    neither is not scored (NaN), with a warning.

    Args:
        target_key: Metadata field with the wanted text.
        reader: What reads the images; RapidOCR with the models of its package if left out.
    """

    name = "ocr_accuracy"
    range = (0.0, 1.0)

    def __init__(self, target_key: str = "target", reader: TextReader | None = None) -> None:
        self.target_key = target_key
        self.reader = RapidOCRReader() if reader is None else reader

    def setup(self, device: torch.device) -> None:
        """Load the reader's models; they stay on the CPU.

        Args:
            device: Where the images will be.

        Raises:
            ModuleNotFoundError: If a package of the extra `ocr` is not installed.
        """
        try:
            import rapidfuzz  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self.name} needs rapidfuzz, which is not installed; run: "
                "pip install 'aegpo[ocr]'"
            ) from error
        self.reader.prepare()

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Accuracy of the text in each image; see `Reward.__call__`.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts, with the wanted text in quotes unless the metadata has it.
            metadata: N dicts.

        Returns:
            (N,) fp32 on the images' device; NaN where a prompt wants no text or an image has a
            value that is not finite.
        """
        targets = [self._target(*pair) for pair in zip(prompts, metadata, strict=True)]
        silent = [prompt for prompt, target in zip(prompts, targets, strict=True) if not target]
        if silent:
            warnings.warn(
                f"{self.name}: {len(silent)} of {len(prompts)} prompts have no text in double "
                f"quotes and no metadata field {self.target_key!r}, so their images are not "
                f"scored; the first is {silent[0]!r}",
                stacklevel=2,
            )
        pixels, finite = to_pixels(images)
        rows = [row for row, target in enumerate(targets) if target and finite[row]]
        scores = torch.full((len(images),), float("nan"), device="cpu")
        for row, text in zip(rows, self.reader.read(pixels[rows]), strict=True):
            scores[row] = text_accuracy(targets[row] or "", text)
        return scores.to(images.device)

    def _target(self, prompt: str, metadata: dict[str, Any]) -> str | None:
        given = metadata.get(self.target_key)
        if given is None:
            return quoted_text(prompt)
        return str(given) if _plain(str(given)) else None


def _plain(text: str) -> str:
    return "".join(text.split()).lower()
