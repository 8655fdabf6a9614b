"""What all FLUX models share: latents as 2x2 patches, text before image, distilled guidance."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor

from aegpo.entropy.tokens import TokenLayout
from aegpo.image_size import Size
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.families.flow_policy import FlowPolicy
from aegpo.policies.patches import from_patches, to_patches
from aegpo.policies.pretrained import find_pipeline, read_model_index, read_part_config
from aegpo.policies.sigmas import Spacing
from aegpo.transfer import without_waiting

PATCH = 2
"""Height and width of the latent patch that is one image token."""
LONGEST_TEXT = 512
"""Most text tokens that the models were trained with."""


class FluxPolicy(FlowPolicy):
    """A FLUX pipeline: double blocks, then single blocks, all with joint attention.

    Latents stay (n, C, H, W); `predict` turns them into patches. The transformer attends to the
    padding of the text, as it did when it was trained; the conditioning's mask marks what is real.

    Args:
        pretrained: Hub id or folder of a saved pipeline.
        distilled_guidance: Guidance that goes into the transformer's own embedding; None for a
            model without one.
        max_sequence_length: Text tokens per prompt, padding included.
        sigma_spacing: "uniform" as the pipeline has it, linspace(1, 1/T, T) through the shift for
            the resolution; "scheduler" for the scheduler's own spacing.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range.
    """

    transformer_class: ClassVar[type[ModelMixin]]
    """The transformer of the pipeline."""
    default_guidance: ClassVar[float]
    """Distilled guidance that the pipeline runs with by default."""

    def __init__(
        self,
        pretrained: str,
        distilled_guidance: float | None = None,
        max_sequence_length: int = LONGEST_TEXT,
        sigma_spacing: Spacing = "uniform",
        **common: Any,
    ) -> None:
        if not 1 <= max_sequence_length <= LONGEST_TEXT:
            raise ValueError(
                f"max_sequence_length={max_sequence_length}; it must be 1 to {LONGEST_TEXT}"
            )
        super().__init__(pretrained, sigma_spacing=sigma_spacing, **common)
        self.distilled_guidance = distilled_guidance
        self.max_sequence_length = max_sequence_length

    @abc.abstractmethod
    def position_ids(self, num_text: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where tokens lie, for the rotary embedding.

        Args:
            num_text: Text tokens S.
            height: Rows of patches.
            width: Patches per row.

        Returns:
            Text ids (S, axes) and image ids (height * width, axes), int64 on the CPU.
        """

    @property
    def latent_channels(self) -> int:
        """Channels of a latent before patches are made: a quarter of the transformer's."""
        return int(self.trained.config.in_channels) // PATCH**2

    @property
    def default_latent_size(self) -> Size:
        """The pipeline's own: 128 latents for 1,024 pixels."""
        return Size.of(self.pipeline.default_sample_size)

    @property
    def latent_multiple(self) -> int:
        """Height and width of a patch."""
        return PATCH

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, of one call of the transformer, shape (n, C, H, W)."""
        dtype = self.compute_dtype
        height, width = (size // PATCH for size in latents.shape[2:])
        text_ids, image_ids = self.position_ids(cond.embeds.shape[1], height, width)
        inputs: dict[str, Tensor] = {}
        if cond.pooled is not None:
            inputs["pooled_projections"] = cond.pooled.to(dtype)
        if self.distilled_guidance is not None:
            inputs["guidance"] = torch.full_like(sigma, self.distilled_guidance).float()
        tokens: Tensor = self.denoiser(
            hidden_states=to_patches(latents, PATCH).to(dtype),
            # The transformer multiplies by 1,000 again. In half precision the detour rounds as it
            # does in the pipeline, so that both tell the model the same noise level.
            timestep=self.timestep(sigma).to(dtype) / 1000,
            encoder_hidden_states=cond.embeds.to(dtype),
            txt_ids=without_waiting(text_ids, latents.device),
            img_ids=without_waiting(image_ids, latents.device),
            return_dict=False,
            **inputs,
        )[0]
        return from_patches(tokens, height, width, PATCH)

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """Rows of `max_sequence_length` tokens, and the pooled text where there is one."""
        config: Any = self.trained.config
        pooled, length = config.get("pooled_projection_dim"), self.max_sequence_length
        return Conditioning(
            torch.zeros(num_rows, length, config.joint_attention_dim, device=self.device),
            None if pooled is None else torch.zeros(num_rows, pooled, device=self.device),
            torch.ones(num_rows, length, dtype=torch.bool, device=self.device),
        )

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Text tokens come first in FLUX's joint attention, in double and in single blocks."""
        return TokenLayout(
            num_image=self.num_image_tokens,
            num_text=cond.embeds.shape[1],
            image_first=False,
            text_mask=cond.mask,
        )

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """The arguments with which the pipeline's own call computes what the policy computes.

        Args:
            num_steps: Denoising steps T.

        Returns:
            Plain values by name, without prompt, latents and output type.
        """
        arguments: dict[str, Any] = {
            "num_inference_steps": num_steps,
            "height": self.image_size.height,
            "width": self.image_size.width,
            "max_sequence_length": self.max_sequence_length,
        }
        if self.distilled_guidance is not None:
            arguments["guidance_scale"] = self.distilled_guidance
        if self.sigma_spacing == "scheduler":
            scheduler = self.pipeline.scheduler
            spaced = np.linspace(scheduler.sigma_max, scheduler.sigma_min, num_steps)
            arguments["sigmas"] = spaced.tolist()
        return arguments

    @classmethod
    def _choose_guidance(cls, pretrained: str, guidance_scale: float | None) -> float | None:
        """The distilled guidance, checked against the transformer before anything is loaded."""
        if guidance_scale is not None and guidance_scale < 0:
            raise ValueError(f"guidance_scale={guidance_scale}; it must be 0 or more")
        source = find_pipeline(pretrained)
        read_model_index(source, cls.pipeline_class)
        config = read_part_config(source, cls.transformer_class, cls.denoiser_name)
        if config.get("guidance_embeds"):
            return cls.default_guidance if guidance_scale is None else guidance_scale
        if guidance_scale is not None:
            raise ValueError(
                f"guidance_scale={guidance_scale}, but the transformer of {pretrained} has no "
                "guidance embedding (as in FLUX.1-schnell); leave guidance_scale out"
            )
        return None
