"""How well an image and its prompt agree under a CLIP model: rewards from any open_clip model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from aegpo.rewards.base import Reward
from aegpo.rewards.open_clip_model import find_open_clip, load_open_clip
from aegpo.rewards.open_clip_preprocess import preprocess

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MAX_CACHED_TEXTS = 16384
"""Prompts whose features are remembered: 50 MB at 768 dimensions."""


class OpenCLIPSimilarity(Reward):
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
        batch_size: Images or prompts at a time; it bounds memory only.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If a name, tag, precision or batch size is none of these.
    """

    name = "open_clip_similarity"
    range = (-1.0, 1.0)

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        batch_size: int = 64,
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision={precision!r} must be one of {', '.join(DTYPES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.source = find_open_clip(model, pretrained)
        self.precision = precision
        self.batch_size = batch_size
        self._model: Any = None
        self._tokenizer: Any = None
        self._device = torch.device("cpu")
        self._texts: dict[str, Tensor] = {}

    def setup(self, device: torch.device) -> None:
        """Loads the model, once, and moves it to the device.

        Args:
            device: Where the images will be.

        Raises:
            ValueError: If the weights do not load.
        """
        if self._model is None:
            self._model, self._tokenizer = load_open_clip(self.source, self.precision)
        self._model.to(device)
        self._device = device
        self._texts.clear()

    @torch.no_grad()
    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Cosine similarities.

        Args:
            images: (N, 3, H, W) in [0, 1]; other values are clipped.
            prompts: N texts.
            metadata: Not read.

        Returns:
            (N,) float32 in [-1, 1] on the images' device; NaN where an image has a non-finite
            pixel.

        Raises:
            ValueError: If the numbers of images and prompts differ.
        """
        if len(images) != len(prompts):
            raise ValueError(
                f"{len(images)} images, but {len(prompts)} prompts; give one for each image"
            )
        if self._model is None or self._device != images.device:
            self.setup(images.device)
        if not prompts:
            return torch.zeros(0, device=images.device)
        # The precision is the reward's own, whatever the training runs in.
        with torch.autocast(images.device.type, enabled=False):
            texts = self._text_features(prompts)
            pictures = [
                self._image_features(chunk) for chunk in torch.split(images, self.batch_size)
            ]
        return (torch.cat(pictures) * texts).sum(dim=1)

    def _image_features(self, images: Tensor) -> Tensor:
        """Unit vectors, fp32, shape (n, D)."""
        pixels = preprocess(images, self._model.visual.preprocess_cfg)
        features = self._model.encode_image(pixels.to(DTYPES[self.precision])).float()
        # Some models hide a NaN, and clipping hides an infinity.
        broken = ~images.isfinite().flatten(1).all(dim=1)
        return F.normalize(features, dim=-1).masked_fill(broken[:, None], float("nan"))

    def _text_features(self, prompts: list[str]) -> Tensor:
        """Unit vectors, fp32, shape (N, D); each prompt is encoded once."""
        new = [text for text in dict.fromkeys(prompts) if text not in self._texts]
        for start in range(0, len(new), self.batch_size):
            chunk = new[start : start + self.batch_size]
            tokens = self._tokenizer(chunk).to(self._device)
            features = F.normalize(self._model.encode_text(tokens).float(), dim=-1)
            self._texts.update(zip(chunk, features, strict=True))
        texts = torch.stack([self._texts[text] for text in prompts])
        while len(self._texts) > MAX_CACHED_TEXTS:
            self._texts.pop(next(iter(self._texts)))
        return texts


class CLIPScore(OpenCLIPSimilarity):
    """Cosine similarity under OpenAI's CLIP ViT-L/14, the "CLIPScore" of Flow-GRPO's tables.

    Neither the factor 2.5 nor the clipping at 0 of CLIPScore's paper (arXiv 2104.08718) is
    applied: most images score 0.2 to 0.3.

    Args:
        model: As in `OpenCLIPSimilarity`.
        pretrained: As in `OpenCLIPSimilarity`; OpenAI's weights (428 M) download once.
        precision: As in `OpenCLIPSimilarity`.
        batch_size: Images or prompts at a time; it bounds memory only.
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
