"""Every family of models under every sampler, against diffusers' own schedulers and by hand."""

from __future__ import annotations

from typing import Any

import policy_contract as contract
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from tiny_families import FAMILIES, Family
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.unet_policy import UNetPolicy
from aegpo.policies.noise_schedule import latent_scale
from aegpo.rollout import rollout
from aegpo.samplers import AdamsBashforth, DPMSolver, Sampler, UniPC
from aegpo.sde import ODE

STEPS = 4


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def policy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DiffusersPolicy:
    family: Family = request.param
    return family.built(tmp_path_factory.mktemp(family.name), lora_rank=4, lora_seed=1)


def draw(policy: DiffusersPolicy, sampler: Sampler | None) -> Tensor:
    """Latents of the three prompts."""
    return rollout(
        policy,
        ODE(),
        policy.encode(contract.PROMPTS),
        ExplorationSchedule.deterministic(3, STEPS),
        torch.ones(3, dtype=torch.int64),
        contract.NOISE,
        contract.INDEX,
        sampler=sampler,
        decode=False,
    ).latents


@torch.no_grad()
def by_hand(policy: DiffusersPolicy) -> Tensor:
    """Two-step Adams-Bashforth as METHOD has it, on the policy's velocities."""
    sigmas, cond = policy.sigmas(STEPS), policy.encode(contract.PROMPTS)
    x = policy.initial_latents(contract.start_noise(policy), float(sigmas[0]))
    before: Tensor | None = None
    for step in range(STEPS):
        v = policy(x, sigmas[step].expand(3), cond)
        h = float(sigmas[step + 1] - sigmas[step])
        ratio = 0.0 if before is None else h / float(sigmas[step] - sigmas[step - 1])
        slope = v if before is None else (1 + ratio / 2) * v - ratio / 2 * before
        x, before = x + h * slope, v
    return x


@torch.no_grad()
def by_diffusers(policy: DiffusersPolicy, kind: Any) -> Tensor:
    """The policy's predictions stepped by a scheduler of diffusers, at the policy's noise levels.

    A flow model's scheduler runs on flow sigmas. A diffusion model's is made of the pipeline's own
    and gets epsilon in the latents of the diffusion.
    """
    sigmas, cond = policy.sigmas(STEPS), policy.encode(contract.PROMPTS)
    x = policy.initial_latents(contract.start_noise(policy), float(sigmas[0]))
    diffusion = isinstance(policy, UNetPolicy)
    end = "sigma_min" if sigmas[-1] > 0 else "zero"
    if diffusion:
        scheduler = kind.from_config(
            policy.pipeline.scheduler.config, prediction_type="epsilon", final_sigmas_type=end
        )
        x = x * latent_scale(sigmas[0])
    else:
        scheduler = kind(
            prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type=end
        )
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = sigmas / (1 - sigmas) if diffusion else sigmas.clamp(max=1 - 1e-6)
    scheduler.set_begin_index(0)
    for step, timestep in enumerate(scheduler.timesteps):
        flow = x / latent_scale(sigmas[step]) if diffusion else x
        output = policy(flow, sigmas[step].expand(3), cond)
        if diffusion:
            output = flow + (1 - sigmas[step]) * output  # the noise that the velocity implies
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return x / latent_scale(sigmas[-1]) if diffusion else x


def test_a_family_is_drawn_as_by_hand_and_as_by_diffusers(policy: DiffusersPolicy) -> None:
    euler = draw(policy, None)
    expected = [
        (AdamsBashforth(), by_hand(policy)),
        (UniPC(), by_diffusers(policy, UniPCMultistepScheduler)),
        (DPMSolver(), by_diffusers(policy, DPMSolverMultistepScheduler)),
    ]
    for sampler, theirs in expected:
        ours = draw(policy, sampler)
        difference = float((ours - theirs).abs().max())
        from_euler = float((ours - euler).abs().max())
        assert difference < 2e-4 and difference < from_euler / 20, (sampler, difference, from_euler)
