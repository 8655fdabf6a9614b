"""The LAION aesthetic predictor, version 2: a linear map of CLIP embeddings, blind to the prompt.

Published as github.com/christophschuhmann/improved-aesthetic-predictor.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.frozen_network import FrozenNetworkReward, Precision
from aegpo.rewards.learned.linear_head import LinearHead
from aegpo.rewards.learned.weights import (
    check_file,
    check_folder,
    fetch_file,
    load_exactly,
    load_pretrained,
    load_tensors,
)


class AestheticV2(FrozenNetworkReward):
    """How beautiful people would find an image, about 1 to 10; the prompt does not matter.

    Args:
        weights: Hub id of a repository with sac+logos+ava1-l14-linearMSE.pth, or a path to that
            file. The authors publish it on GitHub; the default is a copy of it on the hub.
        clip: Hub id or folder of the CLIP model whose image embeddings are read.
        batch_size: Images in one call of the network.
        dtype: Of the CLIP model's weights and activations.

    Raises:
        FileNotFoundError: If `weights` or `clip` is neither a path nor a hub id.
        ValueError: If another argument is out of range.
    """

    name = "aesthetic_v2"

    filename = "sac+logos+ava1-l14-linearMSE.pth"
    """The checkpoint's name in a repository."""

    def __init__(
        self,
        weights: str = "camenduru/improved-aesthetic-predictor",
        clip: str = "openai/clip-vit-large-patch14",
        batch_size: int = 32,
        dtype: Precision = "float32",
    ) -> None:
        super().__init__(batch_size, dtype)
        check_file(weights, self.filename, "weights")
        check_folder(clip, "config.json", "clip")
        self.weights = weights
        self.clip = clip

    def load(self) -> Any:
        """CLIP's image half and the linear head; the text half is let go."""
        tensors = load_tensors(fetch_file(self.weights, self.filename, "weights"))
        clip = load_pretrained(CLIPModel, self.clip, "clip", dtype=self.dtype)
        head = LinearHead(clip.config.projection_dim)
        load_exactly(head, tensors, f"weights={self.weights!r}")
        parts = {"vision": clip.vision_model, "projection": clip.visual_projection, "head": head}
        return nn.ModuleDict(parts)

    def score(self, images: Tensor, features: Tensor) -> Tensor:
        """Aesthetic scores, shape (n,)."""
        vision = self.network["vision"]
        pixels = clip_pixels(images, vision.config.image_size, "crop")
        embeddings = self.network["projection"](vision(pixels.to(self.dtype)).pooler_output)
        scores: Tensor = self.network["head"](normalize(embeddings.float(), dim=-1))
        return scores
