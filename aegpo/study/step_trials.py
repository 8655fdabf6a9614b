"""Single-step trials: the spread that one step's noise alone gives to the reward."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout import rollout
from aegpo.samplers import Sampler
from aegpo.sde import SDE


def group_rewards(  # noqa: PLR0913  # those of `rollout`, and a reward
    policy: Policy,
    sde: SDE,
    reward: Reward,
    batch: PromptBatch,
    noise: KeyedNoise,
    schedule: ExplorationSchedule,
    *,
    images: int,
    shared_start: bool,
    split_scale: float | None = None,
    sampler: Sampler | None = None,
    purpose: str,
) -> Tensor:
    """Draw an equal group for every prompt and score it.

    Args:
        policy: The policy.
        sde: How stochastic steps are taken.
        reward: What scores the images.
        batch: The B prompts.
        noise: Keyed noise of the draws.
        schedule: Which steps draw noise, B rows.
        images: Images in a group, G.
        shared_start: Whether a group starts from the same noise.
        split_scale: How the noise of siblings is correlated; None for not at all.
        sampler: What takes the steps without noise; None for the Euler step.
        purpose: What the evaluations are charged to.

    Returns:
        Rewards, NaN where one failed, fp32 on the CPU, shape (B, G).
    """
    with policy.evaluations.charge(purpose):
        tree = rollout(
            policy,
            sde,
            policy.encode(batch.prompts),
            schedule,
            torch.full((len(batch),), images, device="cpu"),
            noise,
            batch.index,
            shared_start=shared_start,
            split_scale=split_scale,
            sampler=sampler,
        )
    drawn = batch.repeat(tree.row)
    scores = guarded_scores(reward, tree.images, drawn.prompts, drawn.metadata)
    return scores.total.cpu().view(len(batch), images)


def single_step_rewards(  # noqa: PLR0913  # those of `group_rewards`
    policy: Policy,
    sde: SDE,
    reward: Reward,
    batch: PromptBatch,
    noise: KeyedNoise,
    *,
    step: int,
    num_steps: int,
    images: int,
    eta: float,
    sampler: Sampler | None = None,
    purpose: str,
) -> Tensor:
    """Rewards of groups in which only one step draws noise.

    The images of a group share their starting noise, so the step is the only difference between
    them. A prompt costs ``step + 1`` evaluations for the shared prefix and
    ``images * (num_steps - 1 - step)`` after it.

    Args:
        policy: The policy.
        sde: How the step is taken.
        reward: What scores the images.
        batch: The B prompts.
        noise: Keyed noise of the draws.
        step: The step that explores, from 0 to ``num_steps - 2``.
        num_steps: Denoising steps T.
        images: Images in a group, G.
        eta: Noise level of the step, in the units of the SDE.
        sampler: What takes the other steps; None for the Euler step.
        purpose: What the evaluations are charged to.

    Returns:
        Rewards, NaN where one failed, fp32 on the CPU, shape (B, G).
    """
    stochastic = torch.zeros(len(batch), num_steps, dtype=torch.bool, device="cpu")
    stochastic[:, step] = True
    return group_rewards(
        policy,
        sde,
        reward,
        batch,
        noise,
        ExplorationSchedule.from_mask(stochastic, eta),
        images=images,
        shared_start=True,
        sampler=sampler,
        purpose=purpose,
    )


def group_spread(rewards: Tensor) -> Tensor:
    """Standard deviation inside each group, with n - 1, over the scores that are there.

    Args:
        rewards: Shape (B, G); NaN marks a missing score.

    Returns:
        Shape (B,); NaN with fewer than two scores.
    """
    present = rewards.isfinite()
    count = present.sum(dim=1)
    values = torch.where(present, rewards, 0.0).double()
    mean = values.sum(dim=1) / count
    squares = torch.where(present, (values - mean[:, None]).square(), 0.0).sum(dim=1)
    # 0 / 0 where one score is left, and a negative number of degrees where none is.
    return (squares / (count - 1)).sqrt().masked_fill(count < 2, float("nan"))
