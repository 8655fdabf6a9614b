"""Latent diffusion models with a UNet, driven as flow models and sampled by DDIM."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from aegpo.entropy.tokens import TokenLayout
from aegpo.image_size import Size
from aegpo.policies.adapters.layouts import Layout, WriteLayout, kohya
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import DiffusersPolicy, scaled_decode
from aegpo.policies.noise_schedule import NoiseSchedule, ddim_scheduler, latent_scale

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class UNetPolicy(DiffusersPolicy):
    """A pipeline whose UNet denoises a variance-preserving diffusion, with the DDIM sampler.

    The pipeline's own scheduler gives the noise levels, and DDIM runs them whatever it is: without
    noise the images are those of the pipeline under `eta=0` and a scheduler made by
    `DDIMScheduler.from_config(pipeline.scheduler.config)`. Explore with `aegpo.sde.DDIM`, as DDPO
    does (arXiv 2305.13301), or any other SDE: the latents are those of a flow, see
    `aegpo.policies.noise_schedule`.

    LoRA groups: "attention" (self- and cross-attention), "feed_forward", "proj" (the projections
    around each transformer, where they are linear: not in SD 1.5).

    Args:
        pretrained: Hub id or folder of a saved pipeline.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If the pipeline's scheduler or UNet is none that can be driven here.
    """

    denoiser_name = "unet"
    replaces_scheduler = True
    # ComfyUI reads the names that kohya's trainer gives.
    lora_layouts: ClassVar[dict[Layout, WriteLayout]] = {"kohya": kohya, "comfyui": kohya}
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": tuple(f"attn{i}.{part}" for i in (1, 2) for part in _ATTENTION),
        "feed_forward": ("ff.net.0.proj", "ff.net.2"),
        "proj": ("proj_in", "proj_out"),
    }

    def __init__(self, pretrained: str, **common: Any) -> None:
        super().__init__(pretrained, **common)
        if self.trained.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"the UNet of {pretrained} was distilled to take guidance as an input (LCM), which "
                "is not supported; give the model that it was distilled from"
            )
        self.noise_schedule = NoiseSchedule(self.pipeline.scheduler)

    def sigmas(self, num_steps: int) -> Tensor:
        """Noise levels of DDIM's timesteps, shape (num_steps + 1,) fp32.

        SD 1.5 and SDXL begin at or below 0.94 and end at 0.028: their training never saw pure
        noise, and their sampler leaves what noise the first timestep has.
        """
        return self.noise_schedule.sigmas(num_steps)

    def initial_latents(self, noise: Tensor, sigma: float) -> Tensor:
        """Noise of the diffusion's variance, 1, in the scale of the flow's latents."""
        return noise / latent_scale(torch.tensor(sigma, device="cpu")).item()

    def clean_latents(self, latents: Tensor) -> Tensor:
        """Latents at the last level in the scale of the diffusion: what its decoder is given."""
        return latents * latent_scale(torch.tensor(self.noise_schedule.final, device="cpu")).item()

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, from one call of the UNet, shape (n, C, H, W) fp32."""
        noisy = latents.float() * latent_scale(sigma.float()).view(-1, 1, 1, 1)
        dtype = self.compute_dtype
        output: Tensor = self.denoiser(
            noisy.to(dtype),
            self.noise_schedule.timesteps(sigma),
            encoder_hidden_states=cond.embeds.to(dtype),
            return_dict=False,
            **self.unet_inputs(cond),
        )[0]
        return self.noise_schedule.velocity(output, noisy, sigma)

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """Rows as long as the tokenizer makes them."""
        length = int(self.pipeline.tokenizer.model_max_length)
        width = self.trained.config.cross_attention_dim
        return Conditioning(
            torch.zeros(num_rows, length, width, device=self.device),
            mask=torch.ones(num_rows, length, dtype=torch.bool, device=self.device),
        )

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """DDIM with the configuration of the pipeline's own scheduler."""
        return ddim_scheduler(scheduler)

    def unet_inputs(self, cond: Conditioning) -> dict[str, Any]:
        """What the UNet is told beside latents, time and text; nothing, unless the model says so.

        Args:
            cond: n rows of conditioning.

        Returns:
            Further arguments of the UNet's forward.
        """
        del cond
        return {}

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes both scalings of the latents and runs the decoder."""
        return scaled_decode(self.vae, self.clean_latents(latents))

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Image tokens at every level of the UNet; text is met in cross-attention only.

        So "image_to_text" measures the cross-attention, "image_to_image" the self-attention and
        "image_to_all" both; text never asks, and there is no "text_to_image".
        """
        levels = [self._latent_size]
        for _ in self.trained.config.block_out_channels[1:]:
            levels.append(Size(*((side + 1) // 2 for side in levels[-1])))
        return TokenLayout(
            num_image=levels[0].area,
            num_text=cond.embeds.shape[1],
            image_first=True,
            text_mask=cond.mask,
            image_sizes=tuple(level.area for level in levels[1:]),
            cross_layers=("attn2",),
        )
