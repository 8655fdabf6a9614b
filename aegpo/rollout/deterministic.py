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
from aegpo.sde import ODE


def deterministic_rollout(
    policy: Policy,
    prompts: Sequence[str],
    index: Tensor,
    num_steps: int,
    noise: KeyedNoise,
    images_per_prompt: int = 1,
) -> RolloutTree:
    """Draws images with the deterministic sampler.

    Args:
        policy: The model.
        prompts: B texts.
        index: (B,) int64, no row twice; an image depends on its prompt's text and number alone.
        num_steps: Denoising steps T.
        noise: Where the images start; see `aegpo.rollout.loop.start_noise`.
        images_per_prompt: k, at least 1.

    Returns:
        A tree of B * k images, those of one prompt side by side, and no stochastic transition.
    """
    schedule = ExplorationSchedule.deterministic(len(prompts), num_steps)
    sizes = torch.full((len(prompts),), images_per_prompt, device="cpu")
    return rollout(policy, ODE(), policy.encode(prompts), schedule, sizes, noise, index)
