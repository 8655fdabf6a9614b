"""Samplers whose arithmetic is that of diffusers' multistep schedulers.

A scheduler keeps the predictions of one batch, all rows of which are at the same step of the same
path. The rows of a tree are not: each starts anew where its own prompt drew noise. But what a
scheduler makes of predictions is linear, so it is run once for a path that starts at a step, on
unit vectors in their place, and the weights are read off the result.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from aegpo.samplers.base import Sampler

_BELOW_ONE = 1 - 1e-6
"""The schedulers' time is log((1 - σ) / σ): they begin here in place of σ = 1, as diffusers' do."""


class _Multistep(Sampler):
    """A multistep scheduler of diffusers, on the policy's own noise levels.

    Its time runs over the ratio of data to noise alone, so it is the same for flow models and, in
    the latents of `aegpo.policies.noise_schedule`, for diffusion models.
    """

    @abc.abstractmethod
    def scheduler(self, final_sigmas_type: str) -> Any:
        """A new scheduler that takes velocities and flow sigmas.

        Args:
            final_sigmas_type: "zero" where the noise levels end at 0, else "sigma_min".

        Returns:
            A scheduler of diffusers.
        """

    def weights(self, sigmas: Tensor, start: int) -> Tensor:
        """The weights; see `Sampler.weights`."""
        with torch.device("cpu"):  # the scheduler's tables are made on the default device
            scheduler = self.scheduler("sigma_min" if sigmas[-1] > 0 else "zero")
            return _read_off(scheduler, sigmas, start)


class UniPC(_Multistep):
    """UniPC (arXiv 2302.04867): predictor and corrector, diffusers' UniPCMultistepScheduler.

    The corrector takes the latents back with the velocity that was predicted at them, so it costs
    no evaluation. It does not touch latents from which a stochastic step is drawn.

    Args:
        order: Of the predictor, 2 or 3.

    Raises:
        ValueError: If it is another one.
    """

    def __init__(self, order: int = 2) -> None:
        if order not in (2, 3):
            raise ValueError(
                f"UniPC: order={order}; use 2 or 3 (order 1 is the Euler step, which is what null "
                "stands for)"
            )
        self.order = order

    def scheduler(self, final_sigmas_type: str) -> Any:
        """The scheduler with its own defaults; see `_Multistep.scheduler`."""
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler(
            solver_order=self.order,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            final_sigmas_type=final_sigmas_type,
        )


class DPMSolver(_Multistep):
    """DPM-Solver++(2M) (arXiv 2211.01095): diffusers' DPMSolverMultistepScheduler.

    Its third order is not offered: towards the image its steps in logarithmic time grow too long to
    extrapolate twice, and on normal data it converges more slowly than the second.
    """

    def scheduler(self, final_sigmas_type: str) -> Any:
        """The scheduler with its own defaults; see `_Multistep.scheduler`."""
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            final_sigmas_type=final_sigmas_type,
        )


def _read_off(scheduler: Any, sigmas: Tensor, start: int) -> Tensor:
    """Run a scheduler on unit vectors: one for the latents, one for each velocity."""
    steps = len(sigmas) - 1 - start
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.double().clamp(max=_BELOW_ONE)
    scheduler.set_begin_index(start)
    units = torch.eye(steps + 1, dtype=torch.float64, device="cpu")
    states = [units[:1]]
    for step in range(steps):
        velocity, timestep = units[step + 1 : step + 2], scheduler.timesteps[start + step]
        states.append(scheduler.step(velocity, timestep, states[-1], return_dict=False)[0])
    return torch.cat(states).diff(dim=0)[:, 1:]
