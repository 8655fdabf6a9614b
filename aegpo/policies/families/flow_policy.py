"""Flow-matching pipelines: the noise levels of their own Euler scheduler."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.pretrained import find_pipeline, read_part_config
from aegpo.policies.sigmas import (
    Spacing,
    even_sigmas,
    refuse_shift_by_resolution,
    resolution_mu,
    scheduler_sigmas,
    with_shift,
)


class FlowPolicy(DiffusersPolicy):
    """A policy whose pipeline runs a flow-matching Euler scheduler.

    Args:
        pretrained: Hub id or folder of a saved pipeline, or "shapes" for the bundled one.
        sigma_spacing: "scheduler" for the scheduler's own spacing, "uniform" for
            linspace(1, 1/T, T) through the scheduler's shift, then 0.
        shift: Constant shift of the noise levels in the place of the scheduler's own, above 0, see
            `with_shift`; not for models whose shift depends on the resolution.
        **common: Arguments of `DiffusersPolicy`.

    Raises:
        ValueError: If `sigma_spacing` is unknown, or `shift` is out of range or not this model's.
    """

    def __init__(
        self,
        pretrained: str,
        sigma_spacing: Spacing = "scheduler",
        shift: float | None = None,
        **common: Any,
    ) -> None:
        if sigma_spacing not in ("scheduler", "uniform"):
            raise ValueError(f"sigma_spacing={sigma_spacing!r}; choose scheduler or uniform")
        if shift is not None and not 0 < shift < math.inf:
            raise ValueError(f"shift={shift} must be finite and above 0, or null for the model's")
        if shift is not None:
            # Before anything is loaded, which says better what is wrong with a pipeline's folder.
            with suppress(OSError):
                source = find_pipeline(pretrained)
                config = read_part_config(source, FlowMatchEulerDiscreteScheduler, "scheduler")
                refuse_shift_by_resolution(config, shift)
        super().__init__(pretrained, **common)
        self.sigma_spacing: Spacing = sigma_spacing
        self.shift = shift
        self.replaces_scheduler = self.replaces_scheduler or shift is not None
        self.pipeline.scheduler = self.sampling_scheduler(self.pipeline.scheduler)

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """The pipeline's own, with `shift` if that is given."""
        return with_shift(scheduler, self.shift)

    def shift_mu(self, num_steps: int) -> float | None:
        """The scheduler's dynamic shift for the present resolution.

        Args:
            num_steps: Denoising steps T, for models whose shift depends on it.

        Returns:
            The shift mu, None where the scheduler does not ask for one.
        """
        del num_steps
        scheduler = self.pipeline.scheduler
        if not scheduler.config.use_dynamic_shifting:
            return None
        return resolution_mu(scheduler, self.num_image_tokens)

    def sigmas(self, num_steps: int) -> Tensor:
        """Noise levels from 1 to 0 under `sigma_spacing`, shape (num_steps + 1,) fp32."""
        return scheduler_sigmas(
            self.pipeline.scheduler, num_steps, self.sigma_spacing, mu=self.shift_mu(num_steps)
        )

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """Those of every pipeline, and the noise levels unless they are the scheduler's own."""
        arguments = super().pipeline_arguments(num_steps)
        if self.sigma_spacing == "uniform":
            # 0.4 for 0.3999999999999999: the same in fp32, and it is printed in the model card.
            arguments["sigmas"] = [round(sigma, 12) for sigma in even_sigmas(num_steps)]
        return arguments

    def timestep(self, sigma: Tensor) -> Tensor:
        """Noise levels on the scale of the denoiser's timesteps, fp32: sigma times 1,000."""
        return sigma.float() * int(self.pipeline.scheduler.config.num_train_timesteps)
