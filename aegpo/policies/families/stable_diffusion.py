"""Stable Diffusion 1 and 2 as a policy (arXiv 2112.10752)."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline

from aegpo.policies.conditioning import Conditioning, real_tokens
from aegpo.policies.families.unet_policy import UNetPolicy


class StableDiffusion(UNetPolicy):
    """A Stable Diffusion 1.x or 2.x pipeline, without its safety checker.

    The checker would blacken images that the reward is to see; it is neither loaded nor saved.

    Args:
        pretrained: Hub id or folder of a StableDiffusionPipeline.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If the pipeline's scheduler or UNet is none that can be driven here.
    """

    pipeline_class = StableDiffusionPipeline
    load_options: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the CLIP encoder; the mask marks start, words and end among its 77 tokens."""
        embeds, _ = self.pipeline.encode_prompt(
            texts, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        mask = real_tokens(self.pipeline.tokenizer, texts, embeds.shape[1], embeds.device)
        return Conditioning(embeds, mask=mask)
