"""GenEval (Ghosh et al. 2023, arXiv 2310.11513) as a reward: objects, numbers, colors, positions.

The benchmark finds objects with Mask2Former (mmdet's Swin-S) and names colors with CLIP ViT-L/14;
the same networks are taken here from transformers and open_clip, so that scores come close to the
benchmark's and are not identical with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.geneval.clauses import (
    CONFIDENCE,
    MAX_OBJECTS,
    Clauses,
    DetectedObject,
    confident_objects,
    judge,
    read_clauses,
)
from aegpo.rewards.geneval.instance_segmentation import InstanceSegmenter
from aegpo.rewards.geneval.object_colors import ColorClassifier
from aegpo.utilities.images import to_pixels


class GenEvalReward(Reward):
    """Whether the image has the objects that the prompt's GenEval clauses ask for.

    The clauses stand in the prompts' metadata (`include`, `exclude` and `tag` of GenEval's files).
    `graded` is Flow-GRPO's training reward, at most 1, 0 for a picture without the objects and
    negative for many surplus ones; `strict` is 1 where every number is exact, else 0; `accurate` is
    the benchmark's own 1 or 0, whose overall score is the mean over the six tags of their means.
    See `geneval_clauses.ClauseScores`.

    Args:
        scoring: "graded", "strict" or "accurate".
        detector: Folder or hub id of the instance segmentation model.
        clip_model: open_clip's name of the model that names colors, or ``local-dir:FOLDER``.
        clip_pretrained: open_clip's name of its weights; null with a folder.
        batch_size: Images that the detector takes at a time.

    Raises:
        ValueError: If `scoring` is another word or `batch_size` is below 1.
    """

    name = "geneval"

    def __init__(
        self,
        scoring: Literal["graded", "strict", "accurate"] = "graded",
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        clip_model: str = "ViT-L-14",
        clip_pretrained: str | None = "openai",
        batch_size: int = 8,
    ) -> None:
        if scoring not in ("graded", "strict", "accurate"):
            raise ValueError(f"scoring={scoring!r} must be graded, strict or accurate")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.scoring = scoring
        self.detector = detector
        self.clip_model = clip_model
        self.clip_pretrained = clip_pretrained
        self.batch_size = batch_size
        # The lowest graded score is one object asked for and the most that count found.
        self.range = (2.0 - MAX_OBJECTS, 1.0) if scoring == "graded" else (0.0, 1.0)
        self._segmenter: InstanceSegmenter | None = None
        self._colors: ColorClassifier | None = None

    def setup(self, device: torch.device) -> None:
        """Load both models.

        Args:
            device: Where the images will be.

        Raises:
            FileNotFoundError: If a model cannot be had.
        """
        self._segmenter = InstanceSegmenter(self.detector, device)
        self._colors = ColorClassifier(self.clip_model, self.clip_pretrained, device)

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Compare images with the clauses of their prompts; see `Reward.__call__`.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts, not read.
            metadata: N dicts with GenEval's clauses.

        Returns:
            (N,) fp32 on the images' device; NaN for an image with a value that is not finite.

        Raises:
            RuntimeError: Before `setup`.
            ValueError: If a prompt has no clauses, or they name a class that is never found.
        """
        if self._segmenter is None:
            raise RuntimeError("GenEvalReward has no models yet; call setup(device) first")
        clauses = [read_clauses(row) for row in metadata]
        for wanted in clauses:
            _check_labels(wanted, self._segmenter.labels)
        pixels, finite = to_pixels(images)
        rows = [row for row in range(len(images)) if finite[row]]
        scores = torch.full((len(images),), float("nan"), device="cpu")
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            found = self._segmenter.find(pixels[chunk], CONFIDENCE)
            for row, objects in zip(chunk, found, strict=True):
                colored = self._with_colors(pixels[row], objects, clauses[row])
                scores[row] = float(getattr(judge(colored, clauses[row]), self.scoring))
        return scores.to(images.device)

    def _with_colors(
        self, picture: npt.NDArray[np.uint8], objects: Sequence[DetectedObject], clauses: Clauses
    ) -> list[DetectedObject]:
        """Name the colors that the clauses ask for."""
        assert self._colors is not None  # loaded with the detector
        names: dict[int, str] = {}
        for clause in clauses.include:
            if clause.color is not None:
                sure = confident_objects(objects, clause.label, clauses.counting)[: clause.count]
                colors = self._colors.name_colors(picture, sure)
                names.update(zip(map(id, sure), colors, strict=True))
        return [replace(item, color=names.get(id(item))) for item in objects]


def _check_labels(clauses: Clauses, known: set[str]) -> None:
    for label in sorted(clauses.labels - known):
        close = difflib.get_close_matches(label, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"the GenEval clauses name the class {label!r}, which the detector does not know{hint} "
            f"(it knows {len(known)}, such as {', '.join(sorted(known)[:3])})"
        )
