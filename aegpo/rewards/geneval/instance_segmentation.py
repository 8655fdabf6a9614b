"""Finding the objects of a picture with a segmentation model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import masks_to_boxes

from aegpo.rewards.geneval.clauses import DetectedObject

_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""GenEval's names of the COCO classes that checkpoints call otherwise."""


class InstanceSegmenter:
    """An instance segmentation model, such as Mask2Former, and its image processor.

    Args:
        pretrained: Folder or hub id of a model for `AutoModelForUniversalSegmentation` whose image
            processor makes instances of its output.
        device: Where it computes.

    Raises:
        FileNotFoundError: If the model cannot be had.
        ValueError: If it is another kind of model.
    """

    def __init__(self, pretrained: str, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        folder = Path(pretrained).expanduser()
        source: dict[str, Any] = {
            "pretrained_model_name_or_path": folder if folder.is_dir() else pretrained,
            "local_files_only": folder.is_dir(),
        }
        try:
            self._processor = AutoImageProcessor.from_pretrained(**source)
            with torch.device("cpu"):
                model = AutoModelForUniversalSegmentation.from_pretrained(
                    **source, use_safetensors=True
                )
        except OSError as error:
            raise FileNotFoundError(
                f"detector={pretrained!r} could not be loaded "
                f"({str(error).strip().splitlines()[0]}); give a folder with config.json, "
                "preprocessor_config.json and safetensors, or a hub id that can be reached"
            ) from error
        except ValueError as error:
            raise ValueError(_wrong_kind(pretrained)) from error
        if not hasattr(self._processor, "post_process_instance_segmentation"):
            raise ValueError(_wrong_kind(pretrained))
        self._model = model.to(device).eval()
        self._labels = {
            number: _NAMES.get(name, name) for number, name in model.config.id2label.items()
        }

    @property
    def labels(self) -> set[str]:
        """Classes that can be found, under GenEval's names."""
        return set(self._labels.values())

    @torch.no_grad()
    def find(self, images: npt.NDArray[np.uint8], threshold: float) -> list[list[DetectedObject]]:
        """Find the objects of pictures, which may overlap.

        Args:
            images: RGB pictures, uint8, shape (N, H, W, 3).
            threshold: Lowest score of an object, in [0, 1].

        Returns:
            The objects of each picture with their masks. Edges of a box are those of its pixels:
            an object of one pixel at (0, 0) has the box (0, 0, 1, 1).
        """
        inputs = self._processor(images=list(images), return_tensors="pt")
        outputs = self._model(
            pixel_values=inputs["pixel_values"].to(self._model.device, self._model.dtype),
            pixel_mask=inputs["pixel_mask"].to(self._model.device),
        )
        instances = self._processor.post_process_instance_segmentation(
            outputs,
            threshold=threshold,
            target_sizes=[images.shape[1:3]] * len(images),
            return_binary_maps=True,
        )
        return [self._objects(found) for found in instances]

    def _objects(self, found: dict[str, Any]) -> list[DetectedObject]:
        if not found["segments_info"]:
            return []
        masks = found["segmentation"].bool().cpu()
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # from the last pixel to its far edge
        return [
            DetectedObject(
                label=self._labels[info["label_id"]],
                score=info["score"],
                box=tuple(box),
                mask=mask.numpy(),
            )
            for info, box, mask in zip(found["segments_info"], boxes.tolist(), masks, strict=True)
        ]


def _wrong_kind(pretrained: str) -> str:
    return (
        f"detector={pretrained!r} is no instance segmentation model; give one such as "
        "facebook/mask2former-swin-small-coco-instance"
    )
