"""What learned rewards share: a frozen network that scores images in batches."""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.utilities.checks import require_positive

Precision = Literal["float32", "bfloat16", "float16"]
"""Names of the dtypes that a frozen network may run in."""

MAX_CACHED_PROMPTS = 4096
"""Prompts whose features are kept on the device; as embeddings of CLIP ViT-H they take 16 MB."""


class FrozenNetworkReward(Reward):
    """A reward that a frozen network gives.

    A subclass makes its network in `load`, turns a prompt into features in `encode_prompt`, if it
    reads prompts, and scores a batch in `score`. It keeps paths and settings alone until `setup`:
    it can be copied, and costs nothing to make. No gradient is kept, autocast is off, so a score
    does not depend on the trainer's precision, and an image with a value that is not finite is
    missing (NaN).

    Args:
        batch_size: Images in one call of the network.
        dtype: Of the network's weights and activations. The last step, a cosine or a small head,
            is float32 in any case: scores within a group of images differ by little.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, batch_size: int = 32, dtype: Precision = "float32") -> None:
        require_positive("batch_size", batch_size)
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype={dtype!r}; choose float32, bfloat16 or float16")
        self.batch_size = batch_size
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.device = torch.device("cpu")
        self.network: Any = None
        self._features: dict[str, Tensor] = {}

    @abc.abstractmethod
    def load(self) -> Any:
        """Makes the network and reads its weights; called once, by `setup`.

        Returns:
            A module on the CPU, its parts in the dtypes that they are to run in.
        """

    @abc.abstractmethod
    def score(self, images: Tensor, features: Tensor) -> Tensor:
        """Scores one batch.

        Args:
            images: Shape (n, 3, H, W), fp32 in [0, 1], on `device`.
            features: What `encode_prompt` made of each prompt, shape (n, ...), on `device`.

        Returns:
            Scores, shape (n,).
        """

    def encode_prompt(self, prompt: str) -> Tensor:
        """What `score` has to know of a prompt; nothing, unless a subclass says otherwise.

        Args:
            prompt: One prompt. By itself, because the last bits of a row depend on its batch, and
                a run that is resumed meets the prompts in other batches.

        Returns:
            Features of one shape for all prompts.
        """
        del prompt
        return torch.zeros(0, device="cpu")

    def setup(self, device: torch.device) -> None:
        """Fetch the weights, if that has not been done, and move to the device.

        Args:
            device: Where the images will be.
        """
        if self.network is None:
            # Libraries draw weights before they read them, on the default device.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                self.network = self.load().eval().requires_grad_(False)
        self.device = torch.device(device)
        self.network.to(self.device)
        self._features.clear()

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score images, in batches; see `Reward.__call__`.

        Args:
            images: (N, 3, H, W) in [0, 1]; values beyond are clipped.
            prompts: N texts, the prompt of each image.
            metadata: Not read.

        Returns:
            (N,) float32 scores on the images' device; NaN for an image that is not finite.

        Raises:
            RuntimeError: If `setup` was not called.
        """
        if self.network is None:
            raise RuntimeError(f"reward {self.name!r} has no network yet; call setup(device) first")
        scores = torch.full((len(images),), float("nan"), device=self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(images), self.batch_size):
                rows = slice(start, start + self.batch_size)
                batch = images[rows].to(self.device, torch.float32)
                finite = batch.isfinite().flatten(1).all(dim=1)
                features = torch.stack([self._encoded(prompt) for prompt in prompts[rows]])
                found = self.score(batch.nan_to_num().clamp(0, 1), features).float()
                scores[rows] = found.masked_fill(~finite, float("nan"))
        return scores.to(images.device)

    def _encoded(self, prompt: str) -> Tensor:
        if prompt not in self._features:
            if len(self._features) == MAX_CACHED_PROMPTS:
                del self._features[next(iter(self._features))]  # the oldest
            self._features[prompt] = self.encode_prompt(prompt).to(self.device)
        return self._features[prompt]
