"""How well an image and its prompt agree under a CLIP model: rewards from any open_clip model."""

from __future__ import annotations

from typing import Any, Literal

from aegpo.rewards.learned.frozen_network import Precision
from aegpo.rewards.learned.open_clip_cosine import OpenCLIPCosine
from aegpo.rewards.learned.open_clip_model import (
    find_open_clip,
    load_open_clip,
    pixel_settings,
)

PRECISIONS: dict[str, Precision] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of the dtypes as open_clip has them."""


class OpenCLIPSimilarity(OpenCLIPCosine):
    """Cosine similarity of image and prompt under an open_clip model (CLIP, arXiv 2103.00020).

    The raw cosine in [-1, 1], without the model's learned temperature: 0.2 to 0.4 for most images
    under the large public models, and no scale on which two models could be compared. A prompt
    longer than the model's context is cut.

    Args:
        model: "shapes" (the bundled one), a folder with an open_clip_config.json and weights, an
            open_clip model config as a JSON file, an architecture that open_clip knows, such as
            ViT-H-14, or "hf-hub:owner/name", which downloads.
        pretrained: Weights of a JSON config or an architecture: a checkpoint (.safetensors, or
            .pt read without unpickling code), or one of open_clip's tags, which downloads once.
        precision: Numbers that the model computes in; fp16 and bf16 are for accelerators.
        batch_size: Images in one call of the network.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If a name, tag, precision or batch size is none of these.
    """

    name = "open_clip_similarity"

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        batch_size: int = 64,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
        super().__init__(batch_size, PRECISIONS[precision])
        self.source = find_open_clip(model, pretrained)

    def load(self) -> Any:
        """The model of open_clip, its tokenizer and its preprocessing."""
        network, self.tokenizer = load_open_clip(self.source)
        self.pixel_settings = pixel_settings(network.visual.preprocess_cfg)
        return network.to(self.dtype)


class CLIPScore(OpenCLIPSimilarity):
    """Cosine similarity under OpenAI's CLIP ViT-L/14, the "CLIPScore" of Flow-GRPO's tables.

    Images are resized bilinearly, as the public scorers of this name do, which hand tensors to
    torchvision's default; `OpenCLIPSimilarity` with the same weights has CLIP's own bicubic.
    Neither the factor 2.5 nor the clipping at 0 of CLIPScore's paper (arXiv 2104.08718) is
    applied, nor the 100 / 30 of Flow-GRPO's code: most images score 0.2 to 0.3.

    Args:
        model: As in `OpenCLIPSimilarity`.
        pretrained: As in `OpenCLIPSimilarity`; OpenAI's weights (428 M) download once.
        precision: As in `OpenCLIPSimilarity`.
        batch_size: Images in one call of the network.
    """

    name = "clip_score"

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        batch_size: int = 64,
    ) -> None:
        super().__init__(model, pretrained, precision, batch_size)

    def load(self) -> Any:
        """As `OpenCLIPSimilarity.load`, with the public scorers' resizing."""
        network = super().load()
        self.pixel_settings["interpolation"] = "bilinear"
        return network
