"""Qwen-Image as a policy (arXiv 2508.02324)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import QwenImagePipeline
from torch import Tensor

from aegpo.entropy.tokens import TokenLayout
from aegpo.image_size import Size
from aegpo.policies.adapters.layouts import Layout, WriteLayout, kohya, scale_inside
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.families.flow_policy import FlowPolicy
from aegpo.policies.patches import from_patches, to_patches


class QwenImage(FlowPolicy):
    """A Qwen-Image pipeline.

    Texts are padded to `max_sequence_length` tokens and the transformer masks the padding, so a row
    is what the pipeline predicts for it in any batch. The noise levels are the pipeline's own,
    linspace(1, 1/T, T) through the scheduler's shift. Guidance keeps the length of the conditional
    prediction, token by token, as the pipeline does.

    LoRA groups: "attention" (the joint attention of both streams), "feed_forward".

    Args:
        pretrained: Hub id or folder of a QwenImagePipeline.
        true_cfg_scale: Weight of classifier-free guidance; 1 is no guidance and half the cost. The
            pipeline's `guidance_scale` is for guidance-distilled models, which are refused.
        max_sequence_length: Text tokens per prompt, the template's not counted, 1 to 1,024. Every
            one costs time, used or not.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range, or the transformer is guidance-distilled.
    """

    pipeline_class = QwenImagePipeline
    lora_layouts: ClassVar[dict[Layout, WriteLayout]] = {"kohya": kohya, "comfyui": scale_inside}
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ),
        "feed_forward": (
            "img_mlp.net.0.proj",
            "img_mlp.net.2",
            "txt_mlp.net.0.proj",
            "txt_mlp.net.2",
        ),
    }

    def __init__(
        self,
        pretrained: str,
        true_cfg_scale: float = 1.0,
        max_sequence_length: int = 512,
        **common: Any,
    ) -> None:
        if true_cfg_scale < 1:
            raise ValueError(f"true_cfg_scale={true_cfg_scale}; it must be 1 (no guidance) or more")
        if not 1 <= max_sequence_length <= 1024:
            raise ValueError(f"max_sequence_length={max_sequence_length}; it must be 1 to 1024")
        super().__init__(
            pretrained, sigma_spacing="uniform", guidance_scale=true_cfg_scale, **common
        )
        if self.trained.config.guidance_embeds:
            raise ValueError(
                f"pretrained={pretrained!r} is guidance-distilled (guidance_embeds), which the "
                "QwenImageTransformer2DModel of diffusers cannot run; give a model without it"
            )
        self.max_sequence_length = max_sequence_length

    @property
    def latent_channels(self) -> int:
        """Channels of a latent before packing: 16 for the published model."""
        return int(self.trained.config.in_channels) // self.latent_multiple**2

    @property
    def default_latent_size(self) -> Size:
        """The pipeline's own: 128, images of 1,024 pixels."""
        return Size.of(self.pipeline.default_sample_size)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, of one call of the transformer, shape (n, C, H, W)."""
        dtype, patch = self.compute_dtype, self.latent_multiple
        height, width = (side // patch for side in latents.shape[2:])
        tokens: Tensor = self.denoiser(
            hidden_states=to_patches(latents, patch).to(dtype),
            # The pipeline rounds the timestep before it scales it down.
            timestep=self.timestep(sigma).to(dtype) / 1000,
            encoder_hidden_states=cond.embeds.to(dtype),
            encoder_hidden_states_mask=cond.mask,
            img_shapes=[[(1, height, width)]] * len(latents),
            return_dict=False,
        )[0]
        return from_patches(tokens, height, width, patch)

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Classifier-free guidance whose tokens are as long as those of `conditional`.

        Args:
            conditional: Predictions for the prompts, shape (n, C, H, W) fp32.
            unconditional: Predictions for the negative text, shape (n, C, H, W) fp32.

        Returns:
            The guided prediction, shape (n, C, H, W).
        """
        patch = self.latent_multiple
        packed = F.pixel_unshuffle(super().guide(conditional, unconditional), patch)
        length = F.pixel_unshuffle(conditional, patch).norm(dim=1, keepdim=True)
        return F.pixel_shuffle(packed * (length / packed.norm(dim=1, keepdim=True)), patch)

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the Qwen2.5-VL encoder on the prompt template, whose first tokens are dropped."""
        embeds, mask = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        if mask is None:  # no text is shorter than another
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        missing = self.max_sequence_length - embeds.shape[1]
        return Conditioning(
            F.pad(embeds, (0, 0, 0, missing)), mask=F.pad(mask.bool(), (0, missing))
        )

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """Rows of `max_sequence_length` tokens."""
        length, width = self.max_sequence_length, self.trained.config.joint_attention_dim
        return Conditioning(
            torch.zeros(num_rows, length, width, device=self.device),
            mask=torch.ones(num_rows, length, dtype=torch.bool, device=self.device),
        )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the latents' normalization and runs the decoder on a video of one frame."""
        vae: Any = self.vae
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        frames = (latents * std + mean).to(vae.dtype).unsqueeze(2)
        images: Tensor = vae.decode(frames, return_dict=False)[0].squeeze(2)
        return images.float() / 2 + 0.5

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Text tokens come first in the joint attention, then the image's."""
        return TokenLayout(
            num_image=self.num_image_tokens,
            num_text=cond.embeds.shape[1],
            image_first=False,
            text_mask=cond.mask,
        )

    @classmethod
    def classifier_free_guidance(cls, arguments: Mapping[str, Any]) -> float:
        """The argument `true_cfg_scale`."""
        return float(arguments["true_cfg_scale"])

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """Guidance under the pipeline's name for it; its noise levels are the policy's."""
        arguments = super().pipeline_arguments(num_steps)
        del arguments["sigmas"], arguments["guidance_scale"]
        arguments["true_cfg_scale"] = self.guidance_scale
        arguments.pop("negative_prompt", None)
        if self.num_evaluations_per_sample == 2:  # an empty one, too: without one is no guidance
            arguments["negative_prompt"] = self.negative_prompt
        return arguments

    def pipeline_latents(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise as tokens, shape (n, H/2 * W/2, 4 C)."""
        return to_patches(noise, self.latent_multiple).to(dtype)
