"""PickScore (arXiv 2305.01569): a CLIP fine-tuned on the choices of Pick-a-Pic's users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.frozen_network import FrozenNetworkReward, Precision
from aegpo.rewards.learned.weights import check_folder, load_pretrained

Scale = Literal["raw/26", "raw", "(raw-18)/8", "cosine"]
"""How published code scales PickScore; raw is exp(logit_scale) times the cosine, about 20 to 24."""

_SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "raw/26": lambda cosines, factor: factor * cosines / 26,
    "raw": lambda cosines, factor: factor * cosines,
    "(raw-18)/8": lambda cosines, factor: (factor * cosines - 18) / 8,
    "cosine": lambda cosines, factor: cosines,
}


class PickScore(FrozenNetworkReward):
    """How well an image pleases those who gave its prompt, under one of the scales in use.

    Group-relative advantages do not depend on the scale as long as they are divided by the group's
    standard deviation; weights in a sum of rewards, and numbers in tables, do.

    Args:
        model: Hub id or folder of the CLIP model.
        processor: Hub id or folder of its processor: tokenizer, image size, mean and std.
        scale: "raw/26" (Flow-GRPO, DiffusionNFT, Flow-Factory), "raw" (tables that show 20 to 24),
            "(raw-18)/8" (MixGRPO) or "cosine" (DanceGRPO; tables that show 0.20 to 0.24 divide
            raw by 100, almost the same).
        batch_size: Images in one call of the network.
        dtype: Of the network's weights and activations.

    Raises:
        FileNotFoundError: If `model` or `processor` is neither a folder nor a hub id.
        ValueError: If another argument is out of range.
    """

    name = "pickscore"

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        scale: Scale = "raw/26",
        batch_size: int = 32,
        dtype: Precision = "float32",
    ) -> None:
        super().__init__(batch_size, dtype)
        if scale not in get_args(Scale):
            raise ValueError(f"scale={scale!r}; choose one of {', '.join(get_args(Scale))}")
        check_folder(model, "config.json", "model")
        check_folder(processor, "tokenizer_config.json", "processor")
        self.model = model
        self.processor = processor
        self.scale = scale
        if scale == "cosine":
            self.range = (-1.0, 1.0)
        self._tokenizer: Any = None
        self._image_processor: Any = None

    def load(self) -> Any:
        """The CLIP model, its logit scale in float32; the processor's halves are kept beside it."""
        self._tokenizer = load_pretrained(AutoTokenizer, self.processor, "processor")
        self._image_processor = load_pretrained(CLIPImageProcessor, self.processor, "processor")
        network = load_pretrained(CLIPModel, self.model, "model", dtype=torch.float32)
        scale = network.logit_scale.data
        network.to(self.dtype)
        network.logit_scale.data = scale  # bfloat16 would make 98.9 of 100
        return network

    def encode_prompt(self, prompt: str) -> Tensor:
        """The prompt's embedding, shape (D,)."""
        tokens = self._tokenizer(
            [prompt],
            padding="max_length",
            truncation=True,
            max_length=self.network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        # Not get_text_features, whose result differs between releases of transformers.
        text = self.network.text_model(tokens.input_ids, attention_mask=tokens.attention_mask)
        embedding: Tensor = self.network.text_projection(text.pooler_output)[0]
        return embedding

    def score(self, images: Tensor, features: Tensor) -> Tensor:
        """PickScores under the scale, shape (n,)."""
        like = self._image_processor
        size = like.crop_size["height"]
        pixels = clip_pixels(images, size, "crop", like.image_mean, like.image_std)
        vision = self.network.vision_model(pixels.to(self.dtype))
        embeddings = self.network.visual_projection(vision.pooler_output)
        cosines = cosine_similarity(embeddings.float(), features.float(), dim=-1)
        return _SCALES[self.scale](cosines, torch.exp(self.network.logit_scale.float()))
