"""Diffusion models as flow models: the arithmetic of a variance-preserving noise schedule.

A diffusion model mixes ``x_vp = a x0 + s eps`` with a² + s² = 1, a flow model
``x = (1 - sigma) x0 + sigma eps``. Divided by a + s the first is the second with
``sigma = s / (a + s)``. In these latents DDIM without noise (arXiv 2010.02502) is the Euler step,
and with noise `aegpo.sde.DDIM`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from aegpo.transfer import without_waiting

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def ddim_scheduler(scheduler: Any) -> DDIMScheduler:
    """The DDIM sampler of a diffusion pipeline, whatever scheduler it ships with.

    The predicted data are never clipped: that is for pixels, and latents are none. The published
    pipelines say the same in their configuration.

    Args:
        scheduler: The pipeline's scheduler; only its configuration is read.

    Returns:
        A new scheduler with the same noise levels, spacing and kind of prediction.

    Raises:
        ValueError: If it is no scheduler of a variance-preserving diffusion model.
    """
    if DDIMScheduler not in getattr(scheduler, "compatibles", ()):
        raise ValueError(
            f"the pipeline's scheduler is a {type(scheduler).__name__}, whose noise levels DDIM "
            "cannot run; give a pipeline with a DDIM, DDPM, PNDM, Euler or DPM-Solver scheduler"
        )
    with torch.device("cpu"):  # its tables are made on the default device
        made: DDIMScheduler = DDIMScheduler.from_config(
            scheduler.config, clip_sample=False, thresholding=False
        )
    return made


def latent_scale(sigma: Tensor) -> Tensor:
    """What the flow's latents are multiplied by to be the diffusion model's, a + s.

    Args:
        sigma: Noise levels in [0, 1], any shape.

    Returns:
        From 1 at either end to sqrt(2) in the middle, same shape.
    """
    return (sigma.square() + (1 - sigma).square()).rsqrt()


class NoiseSchedule:
    """Noise levels of a diffusion model, and what its predictions are as velocities.

    Args:
        scheduler: The pipeline's scheduler; only its configuration is read.

    Attributes:
        final: The level at which DDIM ends: 0, or that of the first training timestep
            (``set_alpha_to_one: false``, as SD 1.5 and SDXL have it), 0.028 for both.

    Raises:
        ValueError: If its configuration is none that can be driven here.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = ddim_scheduler(scheduler)
        self.prediction_type: str = self._scheduler.config.prediction_type
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"the scheduler's prediction_type is {self.prediction_type!r}; known are "
                f"{', '.join(PREDICTION_TYPES)}"
            )
        if self.prediction_type == "epsilon" and self._scheduler.config.rescale_betas_zero_snr:
            raise ValueError(
                "rescale_betas_zero_snr starts from pure noise, where a predicted epsilon says "
                "nothing about the image; it needs prediction_type v_prediction or sample"
            )
        levels = _flow_sigma(self._scheduler.alphas_cumprod)
        self.final = float(_flow_sigma(self._scheduler.final_alpha_cumprod))
        self._levels = levels
        self._between = (levels[1:] + levels[:-1]) / 2

    def sigmas(self, num_steps: int) -> Tensor:
        """The levels that DDIM runs through: those of its timesteps, then `final`.

        diffusers' DDIM steps by a whole number of training timesteps. Where the spacing is
        "linspace", or "trailing" with steps that do not divide the timesteps evenly, its steps and
        its timesteps drift apart; here a step always ends where the next one begins.

        Args:
            num_steps: Denoising steps T, at least 1.

        Returns:
            Falling, shape (T + 1,) fp32 on the CPU.

        Raises:
            ValueError: If the model has too few training timesteps for so many steps.
        """
        total = len(self._levels)
        if 1 <= num_steps <= total:
            self._scheduler.set_timesteps(num_steps, device="cpu")
            timesteps = self._scheduler.timesteps
            if int(timesteps[0]) < total:
                sigmas = torch.cat(
                    [self._levels[timesteps], torch.tensor([self.final], device="cpu")]
                )
                if bool((sigmas[1:] < sigmas[:-1]).all()):
                    return sigmas
        raise ValueError(
            f"{num_steps} denoising steps do not fit the {total} training timesteps of this model "
            f"(timestep_spacing {self._scheduler.config.timestep_spacing}); choose another "
            f"num_steps, at least 1 and well below {total}, or set timestep_spacing leading in the "
            "pipeline's scheduler_config.json"
        )

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The training timesteps whose levels are nearest.

        Args:
            sigma: Noise levels, shape (n,).

        Returns:
            Shape (n,) int64, on the same device.
        """
        between = without_waiting(self._between, sigma.device)
        return torch.bucketize(sigma.float().contiguous(), between)

    def velocity(self, output: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Turns what the model predicts into noise - data.

        Args:
            output: The model's output at `noisy`, of the kind `prediction_type`, (n, C, H, W).
            noisy: The diffusion model's latents, a x0 + s eps, shape (n, C, H, W).
            sigma: Noise level of each row in (0, 1], shape (n,).

        Returns:
            The velocity, shape (n, C, H, W) fp32.
        """
        output, noisy = output.float(), noisy.float()
        sigma = sigma.float().view(-1, *[1] * (noisy.dim() - 1))
        scale = latent_scale(sigma)
        of_data, of_noise = (1 - sigma) * scale, sigma * scale
        if self.prediction_type == "epsilon":
            return output - (noisy - of_noise * output) / of_data
        if self.prediction_type == "v_prediction":
            return (of_data + of_noise) * output + (of_noise - of_data) * noisy
        return (noisy - of_data * output) / of_noise - output


def _flow_sigma(alphas_cumprod: Tensor) -> Tensor:
    """Levels s / (a + s) of cumulative alphas, fp32."""
    kept = alphas_cumprod.double()
    data, noise = kept.sqrt(), (1 - kept).sqrt()
    return (noise / (data + noise)).float()
