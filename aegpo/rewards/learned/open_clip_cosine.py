"""What rewards from models of open_clip share: the cosine of image and prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.frozen_network import FrozenNetworkReward, Precision


class OpenCLIPCosine(FrozenNetworkReward):
    """Cosine of image and prompt, without the model's learned temperature.

    A subclass's `load` returns a model of open_clip; it also sets `tokenizer`, from a list of texts
    to ids, and `pixel_settings`, the arguments of `clip_pixels` after the images.

    Args:
        batch_size: Images in one call of the network.
        dtype: Of the network's weights and activations.

    Raises:
        ValueError: If an argument is out of range.
    """

    range = (-1.0, 1.0)

    def __init__(self, batch_size: int = 32, dtype: Precision = "float32") -> None:
        super().__init__(batch_size, dtype)
        self.tokenizer: Any = None
        self.pixel_settings: dict[str, Any] = {}

    def encode_prompt(self, prompt: str) -> Tensor:
        """The prompt's embedding, shape (D,); what is longer than the context is cut."""
        embedding: Tensor = self.network.encode_text(self.tokenizer([prompt]).to(self.device))[0]
        return embedding

    def score(self, images: Tensor, features: Tensor) -> Tensor:
        """Cosines, shape (n,)."""
        pixels = clip_pixels(images, **self.pixel_settings).to(self.dtype)
        embeddings = self.network.encode_image(pixels)
        return cosine_similarity(embeddings.float(), features.float(), dim=-1)
