"""Stable Diffusion XL as a policy (arXiv 2307.01952)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline

from aegpo.policies.conditioning import Conditioning, real_tokens
from aegpo.policies.families.unet_policy import UNetPolicy
from aegpo.transfer import without_waiting


class StableDiffusionXL(UNetPolicy):
    """A Stable Diffusion XL base pipeline; images are neither cropped nor watermarked.

    Args:
        pretrained: Hub id or folder of a StableDiffusionXLPipeline.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If the pipeline's scheduler or UNet is none that can be driven here.
    """

    pipeline_class = StableDiffusionXLPipeline
    encoder_names = ("text_encoder", "text_encoder_2")
    load_options: ClassVar[dict[str, Any]] = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }

    def unet_inputs(self, cond: Conditioning) -> dict[str, Any]:
        """The pooled text, and the resolution as original size, crop corner and target size."""
        assert cond.pooled is not None  # `encode_texts` always gives it
        size = self.image_size
        time_ids = without_waiting(
            torch.tensor([*size, 0, 0, *size], device="cpu"), cond.pooled.device
        )
        return {
            "added_cond_kwargs": {
                "text_embeds": cond.pooled.to(self.compute_dtype),
                "time_ids": time_ids.expand(len(cond), -1),
            }
        }

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Both encoders' penultimate states side by side, and the second's pooled text.

        A position is real if either tokenizer has text there.
        """
        pipeline = self.pipeline
        embeds, _, pooled, _ = pipeline.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False
        )
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
            mask |= real_tokens(tokenizer, texts, embeds.shape[1], embeds.device)
        return Conditioning(embeds, pooled, mask)

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """As for every UNet, and the pooled text."""
        width = self.pipeline.text_encoder_2.config.projection_dim
        pooled = torch.zeros(num_rows, width, device=self.device)
        return replace(super().blank_conditioning(num_rows), pooled=pooled)

    def encode_negative(self) -> Conditioning:
        """`negative_prompt`; without one zeros, where the pipeline was trained with them."""
        negative = super().encode_negative()
        if self.negative_prompt or not self.pipeline.config.force_zeros_for_empty_prompt:
            return negative
        assert negative.pooled is not None
        return replace(
            negative,
            embeds=torch.zeros_like(negative.embeds),
            pooled=torch.zeros_like(negative.pooled),
        )
