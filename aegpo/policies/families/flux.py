"""FLUX.1 as a policy (Black Forest Labs, 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from aegpo.policies.adapters.layouts import Layout, WriteLayout, kohya_flux, scale_inside
from aegpo.policies.conditioning import Conditioning, real_tokens
from aegpo.policies.diffusers_policy import scaled_decode
from aegpo.policies.families.flux_policy import PATCH, FluxPolicy
from aegpo.policies.patches import to_patches


class Flux(FluxPolicy):
    """A FLUX.1 pipeline: dev, which is distilled from its guided self, or schnell.

    LoRA groups: "attention" (queries, keys and values of all blocks, and the double blocks' output
    projections), "feed_forward" (the double blocks' feed-forwards and the single blocks' half of
    one), "single" (all projections of the single blocks, whose `proj_out` takes attention and
    feed-forward at once).

    Args:
        pretrained: Hub id or folder of a FluxPipeline.
        guidance_scale: Distilled guidance, an input of the transformer that costs nothing; 3.5 by
            default. Only for models with such an input (dev, not schnell).
        true_cfg_scale: Weight of classifier-free guidance against `negative_prompt`, at twice the
            cost; 1 is none.
        **common: Arguments of `FluxPolicy` and `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range, or the model takes no distilled guidance.
    """

    pipeline_class = FluxPipeline
    transformer_class = FluxTransformer2DModel
    encoder_names = ("text_encoder", "text_encoder_2")
    default_guidance = 3.5
    lora_layouts: ClassVar[dict[Layout, WriteLayout]] = {
        "kohya": kohya_flux,
        "comfyui": scale_inside,
    }
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ),
        "feed_forward": (
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
            "proj_mlp",
        ),
        "single": (
            *(f"single_transformer_blocks.*.attn.to_{part}" for part in ("q", "k", "v")),
            *(f"single_transformer_blocks.*.{part}" for part in ("proj_mlp", "proj_out")),
        ),
    }

    def __init__(
        self,
        pretrained: str,
        guidance_scale: float | None = None,
        true_cfg_scale: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(
            pretrained,
            distilled_guidance=self._choose_guidance(pretrained, guidance_scale),
            guidance_scale=true_cfg_scale,
            **common,
        )

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs T5, whose tokens the transformer sees, and CLIP for the pooled embedding."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        mask = real_tokens(
            self.pipeline.tokenizer_2, texts, self.max_sequence_length, embeds.device
        )
        return Conditioning(embeds, pooled, mask)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the latent scaling and shift and runs the decoder."""
        return scaled_decode(self.vae, latents)

    def position_ids(self, num_text: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Text lies at (0, 0, 0), the patch of row y and column x at (0, y, x)."""
        image = torch.cartesian_prod(
            torch.arange(1, device="cpu"),
            torch.arange(height, device="cpu"),
            torch.arange(width, device="cpu"),
        )
        return torch.zeros(num_text, 3, dtype=torch.int64, device="cpu"), image

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """As for every FLUX, and classifier-free guidance if it is on."""
        arguments = super().pipeline_arguments(num_steps)
        if self.num_evaluations_per_sample == 2:
            arguments["true_cfg_scale"] = self.guidance_scale
            arguments["negative_prompt"] = self.negative_prompt
        return arguments

    def pipeline_latents(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise as tokens, shape (n, H/2 * W/2, 4 C)."""
        return to_patches(noise, PATCH).to(dtype)

    @classmethod
    def classifier_free_guidance(cls, arguments: Mapping[str, Any]) -> float:
        """The argument `true_cfg_scale`."""
        return float(arguments["true_cfg_scale"])
