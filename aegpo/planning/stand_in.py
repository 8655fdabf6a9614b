"""A policy without a model: it predicts zeros, and counts evaluations as any policy does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from aegpo.entropy.tokens import TokenLayout
from aegpo.policies.base import GuidanceGradient, Policy
from aegpo.policies.conditioning import Conditioning


class StandInPolicy(Policy):
    """Takes a policy's place where only the number of its evaluations matters.

    Rollouts and updates run as they would, on latents of one number, so that what they cost is
    counted and not calculated.

    Args:
        guidance_scale: Weight of classifier-free guidance; anything but 1 doubles evaluations.
        guidance_gradient: Through which of its two predictions an update goes back.

    Raises:
        ValueError: If the guidance is below 1.
    """

    def __init__(
        self, guidance_scale: float = 1.0, guidance_gradient: GuidanceGradient = "both"
    ) -> None:
        super().__init__(guidance_scale, max_batch=2**31, guidance_gradient=guidance_gradient)
        self.weight = nn.Parameter(torch.zeros((), device="cpu"))

    @property
    def denoiser(self) -> nn.Module:
        """The policy itself, for want of a network."""
        return self

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One number."""
        return (1, 1, 1)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Zeros, with a gradient."""
        return latents * self.weight

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """One number per text."""
        return Conditioning(torch.zeros(len(texts), 1, 1, device="cpu"))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Black images of one pixel."""
        return torch.zeros(len(latents), 3, 1, 1, device=latents.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """Equal steps from 1 to 0."""
        return torch.linspace(1.0, 0.0, num_steps + 1, device="cpu")

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """One token of each kind."""
        return TokenLayout(num_image=1, num_text=1, image_first=True, text_mask=None)

    def reference(self) -> AbstractContextManager[None]:
        """Nothing was trained, so nothing has to change."""
        return nullcontext()

    def save_pretrained(self, folder: str | Path) -> None:
        """Refuse: there is no model to write.

        Args:
            folder: Where it would go.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a stand-in has no weights to save")
