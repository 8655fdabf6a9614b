"""Naming the color of an object by zero-shot classification with CLIP, as in GenEval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aegpo.prompts.sets.geneval import COLORS
from aegpo.rewards.geneval.clauses import DetectedObject
from aegpo.rewards.learned.open_clip_model import find_open_clip, load_open_clip

BACKGROUND = 0x99
"""Gray value of what does not belong to the object."""


class ColorClassifier:
    """A CLIP model that says which of `COLORS` an object has.

    Args:
        model: Model name of open_clip, or ``local-dir:FOLDER``.
        pretrained: open_clip's name of the weights, or None with a folder.
        device: Where it computes.

    Raises:
        FileNotFoundError: If the model cannot be had.
    """

    def __init__(self, model: str, pretrained: str | None, device: torch.device) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        try:
            self._model, self._tokenizer = load_open_clip(find_open_clip(model, pretrained))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"clip_model={model!r} with clip_pretrained={pretrained!r} could not be loaded "
                f"({error}); give a pair of open_clip.list_pretrained() that can be fetched, or "
                "local-dir:FOLDER with null"
            ) from error
        self._model.to(device).eval()
        config = PreprocessCfg(**self._model.visual.preprocess_cfg)
        self._preprocess = image_transform_v2(config, is_train=False)
        self._device = device
        self._classifiers: dict[str, Tensor] = {}

    @torch.no_grad()
    def name_colors(
        self, picture: npt.NDArray[np.uint8], objects: Sequence[DetectedObject]
    ) -> list[str]:
        """Name the color of each object, seen alone on gray.

        Args:
            picture: RGB picture, uint8, shape (H, W, 3).
            objects: Objects in it, of one class and with their masks.

        Returns:
            One of `COLORS` for each.
        """
        if not objects:
            return []
        crops = torch.stack([self._preprocess(crop_object(picture, item)) for item in objects])
        features = self._model.encode_image(crops.to(self._device), normalize=True)
        closest = (features @ self._classifier(objects[0].label)).argmax(dim=1)
        return [COLORS[number] for number in closest.tolist()]

    def _classifier(self, label: str) -> Tensor:
        """Text features of the colors of a class, shape (features, colors); kept for next time."""
        import open_clip

        if label not in self._classifiers:
            self._classifiers[label] = open_clip.build_zero_shot_classifier(
                self._model,
                self._tokenizer,
                classnames=COLORS,
                templates=[
                    f"a photo of a {{}} {label}",
                    f"a photo of a {{}}-colored {label}",
                    "a photo of a {} object",
                ],
                device=self._device,
            )
        return self._classifiers[label]


def crop_object(picture: npt.NDArray[np.uint8], item: DetectedObject) -> Image.Image:
    """Cut an object out, with gray where its mask is not.

    Args:
        picture: RGB picture, uint8, shape (H, W, 3).
        item: An object with its mask.

    Returns:
        The picture within the object's box.

    Raises:
        ValueError: If the object has no mask.
    """
    if item.mask is None:
        raise ValueError(f"the {item.label} was found without a mask; its color cannot be told")
    left, top, right, bottom = (round(edge) for edge in item.box)
    alone = np.where(item.mask[..., None], picture, np.uint8(BACKGROUND))
    return Image.fromarray(alone[top:bottom, left:right])
