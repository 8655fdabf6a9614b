"""Human Preference Score v2.1 (arXiv 2306.09341): a CLIP fine-tuned on people's choices."""

from __future__ import annotations

from typing import Any

import open_clip
from torch import Tensor
from torch.nn.functional import cosine_similarity

from aegpo.rewards.clip_pixels import clip_pixels
from aegpo.rewards.frozen_network import FrozenNetworkReward, Precision
from aegpo.rewards.weights import check_file, fetch_file, load_exactly, load_tensors


class HPSv21(FrozenNetworkReward):
    """Cosine of image and prompt under HPSv2.1, about 0.2 to 0.4; no logit scale.

    Images are resized by their longer side and padded with black, as the authors do. They score
    under fp16 autocast; here it is float32 unless `dtype` says otherwise.

    Args:
        weights: Hub id of a repository with HPS_v2.1_compressed.pt, or a path to that file.
        batch_size: Images in one call of the network.
        dtype: Of the network's weights and activations.

    Raises:
        FileNotFoundError: If `weights` is neither a path nor a hub id.
        ValueError: If another argument is out of range.
    """

    range = (-1.0, 1.0)

    architecture = "ViT-H-14"
    """Name of the architecture in open_clip."""

    filename = "HPS_v2.1_compressed.pt"
    """The checkpoint's name in the repository."""

    def __init__(
        self, weights: str = "xswu/HPSv2", batch_size: int = 32, dtype: Precision = "float32"
    ) -> None:
        super().__init__(batch_size, dtype)
        check_file(weights, self.filename, "weights")
        self.weights = weights
        self._tokenizer: Any = None

    def load(self) -> Any:
        """The open_clip model with the checkpoint, whose names and shapes must all fit."""
        tensors = load_tensors(fetch_file(self.weights, self.filename, "weights"))
        self._tokenizer = open_clip.get_tokenizer(self.architecture)
        # Not create_model, which logs that the weights are random.
        network = open_clip.CLIP(**open_clip.get_model_config(self.architecture))
        load_exactly(network, tensors, f"weights={self.weights!r}")
        return network.to(self.dtype)

    def encode_prompt(self, prompt: str) -> Tensor:
        """The prompt's embedding, shape (D,)."""
        embedding: Tensor = self.network.encode_text(self._tokenizer([prompt]).to(self.device))[0]
        return embedding

    def score(self, images: Tensor, features: Tensor) -> Tensor:
        """Cosines, shape (n,)."""
        size = self.network.visual.image_size
        pixels = clip_pixels(images, size[0] if isinstance(size, tuple) else size, "pad")
        embeddings = self.network.encode_image(pixels.to(self.dtype))
        return cosine_similarity(embeddings.float(), features.float(), dim=-1)
