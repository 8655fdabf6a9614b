"""Rollouts and updates of the bundled model, apart from a training."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives import Experience, PolicyGradient
from aegpo.objectives.transition_samples import Replay
from aegpo.policies import StableDiffusion3
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import FlowSDE

STEPS, NOISY = 10, 4
PROMPTS = ["a red circle", "two blue squares", "a green star", "a yellow triangle"]


def shapes(device: str, **settings: object) -> StableDiffusion3:
    """The bundled model with the quickstart's adapters."""
    policy = StableDiffusion3(
        "shapes",
        **{"lora_rank": 8, "lora_seed": 0, "lora_targets": ["attention", "feed_forward"]},
        **{"sigma_spacing": "uniform", "max_sequence_length": 0, "max_batch": 256},
        **settings,
    )
    return policy.to(device).train()


class Draw:
    """A rollout that can be drawn again.

    Args:
        policy: What draws.
        images: Images of each of the four prompts.
        noisy: Steps that draw noise, from the first.
    """

    def __init__(self, policy: StableDiffusion3, images: int, noisy: int = NOISY) -> None:
        self.policy, self.sde, self.noise = policy, FlowSDE(), KeyedNoise(0)
        self.cond = policy.encode(PROMPTS)
        draws = torch.zeros(len(PROMPTS), STEPS, dtype=torch.bool)
        draws[:, :noisy] = True
        self.schedule = ExplorationSchedule.from_mask(draws, 0.7)
        self.sizes, self.index = torch.full((len(PROMPTS),), images), torch.arange(len(PROMPTS))

    def __call__(self) -> RolloutTree:
        """Draw the images, decoded."""
        return rollout(
            *(self.policy, self.sde, self.cond, self.schedule, self.sizes, self.noise, self.index)
        )


def drawn(policy: StableDiffusion3, images: int, noisy: int = NOISY) -> Replay:
    """One rollout with random rewards, as samples of the policy gradient."""
    draw = Draw(policy, images, noisy)
    tree, noise = draw(), draw.noise
    rewards = noise.normal("rewards", torch.arange(len(tree))[:, None], (1,))[:, 0].to(
        policy.device
    )
    return PolicyGradient().samples(
        Experience(
            *(policy, draw.sde, draw.cond, tree, draw.schedule, rewards, rewards, draw.index),
            noise,
        )
    )


def backward(samples: Replay, micro_batches: list[Tensor], first: bool = False) -> None:
    """Add up an update's gradient, and forget it."""
    for which in micro_batches:
        (samples.first_loss if first else samples.loss)(which).loss.sum().backward()
    samples.policy.zero_grad()


def halves(samples: Replay, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The micro-batches of two updates."""
    order = torch.arange(len(samples.tree.transitions), device=samples.policy.device)
    one, two = (list(part.split(size)) for part in order.chunk(2))
    return one, two
