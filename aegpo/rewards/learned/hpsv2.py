"""Human Preference Score v2.1 (arXiv 2306.09341): a CLIP fine-tuned on people's choices."""

from __future__ import annotations

from typing import Any

import open_clip

from aegpo.rewards.learned.frozen_network import Precision
from aegpo.rewards.learned.open_clip_cosine import OpenCLIPCosine
from aegpo.rewards.learned.weights import check_file, fetch_file, load_exactly, load_tensors


class HPSv21(OpenCLIPCosine):
    """Cosine of image and prompt under HPSv2.1, about 0.2 to 0.4; no logit scale.

    Images are resized by their longer side as tensors of floats, not clipped, and padded with
    black, as the authors do. They score under fp16 autocast; here it is float32 unless `dtype` says
    otherwise.

    Args:
        weights: Hub id of a repository with HPS_v2.1_compressed.pt, or a path to that file.
        batch_size: Images in one call of the network.
        dtype: Of the network's weights and activations.

    Raises:
        FileNotFoundError: If `weights` is neither a path nor a hub id.
        ValueError: If another argument is out of range.
    """

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

    def load(self) -> Any:
        """The open_clip model with the checkpoint, whose names and shapes must all fit."""
        tensors = load_tensors(fetch_file(self.weights, self.filename, "weights"))
        self.tokenizer = open_clip.get_tokenizer(self.architecture)
        # Not create_model, which logs that the weights are random.
        network = open_clip.CLIP(**open_clip.get_model_config(self.architecture))
        load_exactly(network, tensors, f"weights={self.weights!r}")
        size = network.visual.image_size
        size = size[0] if isinstance(size, tuple) else size
        self.pixel_settings = {"size": size, "fit": "pad", "clip": False}
        return network.to(self.dtype)
