"""FLUX.2 as a policy: dev and Klein (Black Forest Labs, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    DiffusionPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor, nn

from aegpo.policies.adapters.layouts import Layout, WriteLayout, kohya_flux, scale_inside
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.families.flux_policy import PATCH, FluxPolicy
from aegpo.policies.pretrained import find_pipeline, read_model_index


class _Flux2Family(FluxPolicy):
    """What FLUX.2 dev and Klein share: all but text encoder and guidance.

    Noise is standard normal in the space of normalised patches, and so it is in these latents,
    which are the same numbers laid out as (C, H, W); `decode_latents` undoes the normalisation.

    Args:
        pretrained: Hub id or folder of a saved pipeline.
        **common: Arguments of `FluxPolicy` and `DiffusersPolicy`.
    """

    transformer_class = Flux2Transformer2DModel
    lora_layouts: ClassVar[dict[Layout, WriteLayout]] = {
        "kohya": kohya_flux,
        "comfyui": scale_inside,
    }
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("attn.to_qkv_mlp_proj", "attn.to_out"),
        ),
        "feed_forward": (
            *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        ),
        "single": ("attn.to_qkv_mlp_proj", "attn.to_out"),
    }

    def shift_mu(self, num_steps: int) -> float | None:
        """FLUX.2's own fit to image tokens and steps, None where the scheduler takes no shift.

        Args:
            num_steps: Denoising steps T.

        Returns:
            The shift mu; 2.0 at 10 steps and 0.6 at 200 for 1,024 tokens.
        """
        if not self.pipeline.scheduler.config.use_dynamic_shifting:
            return None
        return float(compute_empirical_mu(self.num_image_tokens, num_steps))

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the language model; the tokens of its chat template count as text."""
        masks: list[Tensor] = []

        def keep_mask(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
            masks.append(inputs["attention_mask"])

        # The pipeline wraps texts in its chat template and tokenizes them: only its encoder is
        # told which tokens are padding.
        handle = self.pipeline.text_encoder.register_forward_pre_hook(keep_mask, with_kwargs=True)
        try:
            embeds, _ = self.pipeline.encode_prompt(
                prompt=texts, device=self.device, max_sequence_length=self.max_sequence_length
            )
        finally:
            handle.remove()
        return Conditioning(embeds, None, torch.cat(masks).bool())

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the batch normalisation of the patches and runs the decoder."""
        statistics: Any = self.vae.bn
        deviation = (statistics.running_var.float() + statistics.eps).sqrt()
        patches = F.pixel_unshuffle(latents, PATCH)
        patches = patches * deviation[:, None, None] + statistics.running_mean[:, None, None]
        vae: Any = self.vae
        images: Tensor = vae.decode(
            F.pixel_shuffle(patches, PATCH).to(vae.dtype), return_dict=False
        )[0]
        return images.float() / 2 + 0.5

    def position_ids(self, num_text: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Text token l lies at (0, 0, 0, l), the patch of row y and column x at (0, y, x, 0)."""
        one = torch.arange(1, device="cpu")
        image = torch.cartesian_prod(
            one, torch.arange(height, device="cpu"), torch.arange(width, device="cpu"), one
        )
        return torch.cartesian_prod(one, one, one, torch.arange(num_text, device="cpu")), image

    def pipeline_latents(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise as patches, shape (n, 4 C, H/2, W/2)."""
        return F.pixel_unshuffle(noise, PATCH).to(dtype)


class Flux2(_Flux2Family):
    """A FLUX.2 [dev] pipeline, which is distilled from its guided self.

    The pipeline has no classifier-free guidance beside the distilled one, so a prediction is one
    evaluation and `negative_prompt` has no effect.

    LoRA groups: "attention" (all blocks; a single block computes queries, keys, values and
    feed-forward in one layer, `to_qkv_mlp_proj`, and both outputs in another), "feed_forward" (the
    double blocks'), "single" (the two layers of the single blocks).

    Args:
        pretrained: Hub id or folder of a Flux2Pipeline.
        guidance_scale: Distilled guidance, an input of the transformer that costs nothing; 4 by
            default.
        **common: Arguments of `FluxPolicy` and `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range, or the model takes no distilled guidance.
    """

    pipeline_class = Flux2Pipeline
    default_guidance = 4.0

    def __init__(self, pretrained: str, guidance_scale: float | None = None, **common: Any) -> None:
        super().__init__(
            pretrained,
            distilled_guidance=self._choose_guidance(pretrained, guidance_scale),
            guidance_scale=1.0,
            **common,
        )

    @classmethod
    def classifier_free_guidance(cls, arguments: Mapping[str, Any]) -> float:
        """None, whatever the distilled guidance is."""
        del arguments
        return 1.0


class Flux2Klein(_Flux2Family):
    """A FLUX.2 [klein] pipeline: the base model, or the one that is distilled to few steps.

    LoRA groups as for `Flux2`.

    Args:
        pretrained: Hub id or folder of a Flux2KleinPipeline.
        guidance_scale: Weight of classifier-free guidance, at twice the cost; by default 4, and 1
            (none) for a model distilled to few steps, which allows no other.
        **common: Arguments of `FluxPolicy` and `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range, or the model allows no guidance.
    """

    pipeline_class = Flux2KleinPipeline

    def __init__(self, pretrained: str, guidance_scale: float | None = None, **common: Any) -> None:
        index = read_model_index(find_pipeline(pretrained), self.pipeline_class)
        distilled = bool(index.get("is_distilled"))
        if distilled and guidance_scale not in (None, 1):
            raise ValueError(
                f"guidance_scale={guidance_scale}, but {pretrained} is distilled to few steps and "
                "runs without guidance; leave guidance_scale out, or choose a base model"
            )
        if guidance_scale is None:
            guidance_scale = 1.0 if distilled else 4.0
        super().__init__(
            pretrained, distilled_guidance=None, guidance_scale=guidance_scale, **common
        )

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """As for every FLUX, and the weight of classifier-free guidance."""
        return super().pipeline_arguments(num_steps) | {"guidance_scale": self.guidance_scale}

    def tensor_arguments(self, pipeline: DiffusionPipeline, num_prompts: int) -> dict[str, Tensor]:
        """The negative text, if there is one: the pipeline takes its embeddings only."""
        # Its own negative text is empty.
        if self.num_evaluations_per_sample == 1 or not self.negative_prompt:
            return {}
        negative, _ = pipeline.encode_prompt(
            prompt=[self.negative_prompt] * num_prompts,
            max_sequence_length=self.max_sequence_length,
        )
        return {"negative_prompt_embeds": negative}

    @classmethod
    def classifier_free_guidance(cls, arguments: Mapping[str, Any]) -> float:
        """The argument; by default the base model's 4, which one distilled to few steps has not."""
        scale = arguments["guidance_scale"]
        return 4.0 if scale is None else float(scale)
