"""Images without exploration: a function of prompt and noise alone, wherever they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy
from aegpo.rollout.loop import rollout
from aegpo.rollout.tree import RolloutTree
from aegpo.samplers import Sampler
from aegpo.sde import ODE


def deterministic_rollout(
    policy: Policy,
    prompts: Sequence[str],
    index: Tensor,
    num_steps: int,
    noise: KeyedNoise,
    images_per_prompt: int = 1,
    sampler: Sampler | None = None,
) -> RolloutTree:
    """Draws images without noise but their start's.

    Args:
        policy: The model.
        prompts: B texts.
        index: (B,) int64, no row twice; an image depends on its prompt's text and number alone.
        num_steps: Denoising steps T.
        noise: Where the images start; see `aegpo.rollout.loop.start_noise`.
        images_per_prompt: k, at least 1.
        sampler: Takes the steps; None for Euler's, which are the model's own scheduler's.

    Returns:
        A tree of B * k images, those of one prompt side by side, and no stochastic transition.
    """
    schedule = ExplorationSchedule.deterministic(len(prompts), num_steps)
    sizes = torch.full((len(prompts),), images_per_prompt, device="cpu")
    return rollout(
        policy, ODE(), policy.encode(prompts), schedule, sizes, noise, index, sampler=sampler
    )
