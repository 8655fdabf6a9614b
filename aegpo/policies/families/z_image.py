"""Z-Image as a policy (arXiv 2511.22699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ZImagePipeline
from torch import Tensor

from aegpo.entropy.tokens import TokenLayout
from aegpo.image_size import Size
from aegpo.policies.adapters.layouts import Layout, WriteLayout, kohya, scale_inside
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import scaled_decode
from aegpo.policies.families.flow_policy import FlowPolicy

TOKEN_MULTIPLE = 32
"""The transformer pads image and caption to multiples of this with learned padding tokens."""


class ZImage(FlowPolicy):
    """A Z-Image or Z-Image-Turbo pipeline.

    The noise levels are the pipeline's own, linspace(1, 1/T, T) through the scheduler's shift. The
    transformer pads a batch to its longest caption and masks what it added; a row's last bits may
    depend on its neighbours.

    LoRA groups: "attention" and "feed_forward", both of the refiners as well as of the main layers.

    Args:
        pretrained: Hub id or folder of a ZImagePipeline.
        guidance_scale: The pipeline's own s in ``cond + s (cond - uncond)``: 0 is no guidance and
            half the cost. Elsewhere in this package the weight is g = 1 + s, and so is the
            attribute `guidance_scale`.
        cfg_normalization: Largest norm of a guided prediction as a multiple of the conditional
            one's; 0 for no limit. The pipeline's True is 1.
        max_sequence_length: Text tokens per prompt, the chat template's included.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range.
    """

    pipeline_class = ZImagePipeline
    lora_layouts: ClassVar[dict[Layout, WriteLayout]] = {"kohya": kohya, "comfyui": scale_inside}
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        "feed_forward": ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    }

    def __init__(
        self,
        pretrained: str,
        guidance_scale: float = 0.0,
        cfg_normalization: float = 0.0,
        max_sequence_length: int = 512,
        **common: Any,
    ) -> None:
        if guidance_scale < 0:
            raise ValueError(
                f"guidance_scale={guidance_scale}; Z-Image takes 0 (no guidance) or more"
            )
        if cfg_normalization < 0:
            raise ValueError(
                f"cfg_normalization={cfg_normalization}; it must be 0 (no limit) or more"
            )
        if max_sequence_length < 1:
            raise ValueError(f"max_sequence_length={max_sequence_length}; it must be 1 or more")
        super().__init__(
            pretrained, sigma_spacing="uniform", guidance_scale=1 + guidance_scale, **common
        )
        # Captions take positions from 1, padding included, and the image the one after them.
        longest = (int(self.trained.config.axes_lens[0]) - 2) // TOKEN_MULTIPLE * TOKEN_MULTIPLE
        if max_sequence_length > longest:
            raise ValueError(
                f"max_sequence_length={max_sequence_length}; this model has positions for {longest}"
            )
        self.cfg_normalization = cfg_normalization
        self.max_sequence_length = max_sequence_length

    @property
    def default_latent_size(self) -> Size:
        """The pipeline's own: images of 1,024 pixels."""
        return Size.of(1024 // int(self.pipeline.vae_scale_factor))

    @property
    def latent_multiple(self) -> int:
        """Height and width of a patch: the pipeline always takes 2."""
        return 2

    @property
    def largest_latent_size(self) -> int:
        """As far as the position embedding reaches."""
        return self.latent_multiple * int(min(self.trained.config.axes_lens[1:]))

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, of one call of the transformer, shape (n, C, H, W)."""
        dtype = self.compute_dtype
        assert cond.mask is not None  # `encode_texts` always gives it
        lengths = cond.mask.sum(dim=1).tolist()
        captions = [
            row[:length] for row, length in zip(cond.embeds.to(dtype), lengths, strict=True)
        ]
        outputs = self.denoiser(
            list(latents.to(dtype).unsqueeze(2)),
            (1000 - self.timestep(sigma)) / 1000,
            captions,
            return_dict=False,
        )[0]
        # Time runs from noise to data here, so the model predicts data - noise.
        return -torch.stack(outputs).squeeze(2)

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Classifier-free guidance, its norm limited by `cfg_normalization`.

        Args:
            conditional: Predictions for the prompts, shape (n, C, H, W) fp32.
            unconditional: Predictions for the negative text, shape (n, C, H, W) fp32.

        Returns:
            The guided prediction, shape (n, C, H, W).
        """
        guided = super().guide(conditional, unconditional)
        if not self.cfg_normalization:
            return guided
        norm, own = (
            torch.linalg.vector_norm(prediction, dim=(1, 2, 3), keepdim=True)
            for prediction in (guided, conditional)
        )
        limited: Tensor = guided * (self.cfg_normalization * own / norm).clamp(max=1)
        return limited

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs the Qwen3 encoder on the prompts in its chat template."""
        length = self.max_sequence_length
        rows, _ = self.pipeline.encode_prompt(
            # A copy: the pipeline writes the chat template into the list that it is given.
            list(texts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return Conditioning(
            embeds=torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows]),
            mask=torch.stack([torch.arange(length, device=row.device) < len(row) for row in rows]),
        )

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """Rows of `max_sequence_length` tokens; `predict` reads the mask, so it has values."""
        length, width = self.max_sequence_length, self.trained.config.cap_feat_dim
        device = "cpu" if self.device.type == "meta" else self.device
        return Conditioning(
            torch.zeros(num_rows, length, width, device=self.device),
            mask=torch.ones(num_rows, length, dtype=torch.bool, device=device),
        )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the latent scaling and runs the decoder."""
        return scaled_decode(self.vae, latents)

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Image tokens come first, then their padding, then the caption and its padding.

        Both kinds of padding are attended to by the model, but are neither image nor text: they
        count as text that is not real.
        """
        assert cond.mask is not None
        image_padding, text_padding = (
            -count % TOKEN_MULTIPLE for count in (self.num_image_tokens, cond.mask.shape[1])
        )
        return TokenLayout(
            num_image=self.num_image_tokens,
            num_text=image_padding + cond.mask.shape[1] + text_padding,
            image_first=True,
            text_mask=F.pad(cond.mask, (image_padding, text_padding)),
            text_layers=("context_refiner",),
            ragged=True,
        )

    @classmethod
    def classifier_free_guidance(cls, arguments: Mapping[str, Any]) -> float:
        """One more than the argument; see the class."""
        return 1 + float(arguments["guidance_scale"])

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """Guidance as the pipeline counts it; its noise levels are the policy's."""
        arguments = super().pipeline_arguments(num_steps)
        del arguments["sigmas"]
        arguments["guidance_scale"] = round(self.guidance_scale - 1, 12)
        if self.cfg_normalization:
            arguments["cfg_normalization"] = self.cfg_normalization
        return arguments

    def pipeline_latents(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise itself: the pipeline keeps its latents in fp32."""
        del dtype
        return noise
