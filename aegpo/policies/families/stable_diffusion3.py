"""Stable Diffusion 3 and 3.5 as a policy (arXiv 2403.03206)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from aegpo.entropy.tokens import TokenLayout
from aegpo.policies.adapters.layouts import Layout, WriteLayout, scale_inside
from aegpo.policies.conditioning import Conditioning, real_tokens
from aegpo.policies.diffusers_policy import scaled_decode
from aegpo.policies.families.flow_policy import FlowPolicy


class StableDiffusion3(FlowPolicy):
    """A Stable Diffusion 3 or 3.5 pipeline.

    Without T5 the pipeline appends `max_sequence_length` zero tokens to the text; the transformer
    attends to them, as it did when it was trained, and the conditioning's mask marks them as not
    real.

    LoRA groups: "attention" (the joint attention, as in Flow-GRPO, arXiv 2505.05470),
    "image_attention" (the second, image-only attention of SD3.5 Medium), "feed_forward".

    Args:
        pretrained: Hub id or folder of a StableDiffusion3Pipeline, or "shapes" for the bundled one.
        max_sequence_length: T5 tokens per prompt, or zero tokens in place of an absent T5 (0 for
            none of them).
        **common: Arguments of `FlowPolicy` and `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range.
    """

    pipeline_class = StableDiffusion3Pipeline
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional_parts = ("text_encoder_3", "tokenizer_3")
    lora_layouts: ClassVar[dict[Layout, WriteLayout]] = {"comfyui": scale_inside}
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ),
        "image_attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        "feed_forward": ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    }

    def __init__(self, pretrained: str, max_sequence_length: int = 256, **common: Any) -> None:
        if max_sequence_length < 0:
            raise ValueError(f"max_sequence_length={max_sequence_length}; it must be 0 or more")
        super().__init__(pretrained, **common)
        self.max_sequence_length = max_sequence_length

    @property
    def largest_latent_size(self) -> int:
        """As far as the position embedding reaches."""
        return self.latent_multiple * int(self.trained.config.pos_embed_max_size)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, of one call of the transformer, shape (n, C, H, W)."""
        dtype = self.compute_dtype
        assert cond.pooled is not None  # `encode_texts` always gives it
        prediction: Tensor = self.denoiser(
            hidden_states=latents.to(dtype),
            timestep=self.timestep(sigma),
            encoder_hidden_states=cond.embeds.to(dtype),
            pooled_projections=cond.pooled.to(dtype),
            return_dict=False,
        )[0]
        return prediction

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the two CLIP encoders and T5, if there is one; S is CLIP's length plus T5's."""
        pipeline = self.pipeline
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        clip_length = int(pipeline.tokenizer_max_length)
        # CLIP's attention mask ends with the end token. Both encoders' tokens share one position,
        # so it is real if either has text there.
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
            mask[:, :clip_length] |= real_tokens(tokenizer, texts, clip_length, mask.device)
        if pipeline.text_encoder_3 is not None:
            length = self.max_sequence_length
            real = real_tokens(pipeline.tokenizer_3, texts, length, mask.device)
            mask[:, clip_length:] = real
        return Conditioning(embeds, pooled, mask)

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """CLIP's tokens and T5's, and the pooled text."""
        config: Any = self.trained.config
        length = int(self.pipeline.tokenizer_max_length) + self.max_sequence_length
        return Conditioning(
            torch.zeros(num_rows, length, config.joint_attention_dim, device=self.device),
            torch.zeros(num_rows, config.pooled_projection_dim, device=self.device),
            torch.ones(num_rows, length, dtype=torch.bool, device=self.device),
        )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the latent scaling and runs the decoder."""
        return scaled_decode(self.vae, latents)

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Image tokens come first in SD3's joint attention, then CLIP's, then T5's."""
        return TokenLayout(
            num_image=self.num_image_tokens,
            num_text=cond.embeds.shape[1],
            image_first=True,
            text_mask=cond.mask,
        )
