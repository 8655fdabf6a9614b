"""Single-step trials: what one step's noise alone gives to the reward, and to the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives.transition_samples import Replay
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout import RolloutTree, rollout
from aegpo.samplers import Sampler
from aegpo.sde import SDE

BLOCKS = 8
"""Into how many blocks of prompts a gradient is divided; their halves are all compared."""


@dataclass(frozen=True, eq=False)
class Groups:
    """An equal group of images for each of B prompts.

    Attributes:
        cond: Conditioning of the prompts.
        schedule: Which steps drew noise.
        tree: The rollout.
        rewards: NaN where one failed, fp32 on the CPU, shape (B, G).
    """

    cond: Conditioning
    schedule: ExplorationSchedule
    tree: RolloutTree
    rewards: Tensor


def draw_groups(  # noqa: PLR0913  # those of `rollout`, and a reward
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
) -> Groups:
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
        The groups and their rewards.
    """
    cond = policy.encode(batch.prompts)
    with policy.evaluations.charge(purpose):
        tree = rollout(
            policy,
            sde,
            cond,
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
    return Groups(cond, schedule, tree, scores.total.cpu().view(len(batch), images))


def single_step_groups(  # noqa: PLR0913  # those of `draw_groups`
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
) -> Groups:
    """Draw groups in which only one step draws noise.

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
        The groups and their rewards.
    """
    stochastic = torch.zeros(len(batch), num_steps, dtype=torch.bool, device="cpu")
    stochastic[:, step] = True
    return draw_groups(
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


def step_agreement(policy: Policy, sde: SDE, drawn: Groups, micro_batch: int = 16) -> float:
    """How far the policy gradients of two halves of the prompts agree.

    The prompts are dealt to `BLOCKS` blocks, each block's gradient is taken once, and the cosine of
    the two halves' gradients is averaged over every way to part the blocks. Rewards less their
    group's mean are the advantages. Gradients have to be switched on; three evaluations a
    transition are charged to the update.

    Args:
        policy: The policy; its gradients are none afterwards.
        sde: The SDE that drew the groups.
        drawn: Groups of two prompts or more.
        micro_batch: Transitions with a graph at once.

    Returns:
        In [-1, 1]; NaN where a half has no gradient.
    """
    mean = drawn.rewards.nanmean(dim=1, keepdim=True)
    advantages = (drawn.rewards - mean).nan_to_num(0.0).flatten().to(drawn.tree.row.device)
    edges = drawn.tree.backup(advantages)
    replay = Replay(policy, sde, drawn.cond, drawn.tree, drawn.schedule, edges)
    parameters = policy.trainable_parameters()
    blocks = min(BLOCKS, len(drawn.rewards))
    gradients = []
    for block in range(blocks):
        which = ((replay.row % blocks) == block).nonzero().flatten()
        for one in which.split(micro_batch):
            replay.loss(one).loss.sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        gradients.append(torch.cat([grad.flatten().float() for grad in grads]))
        for parameter in parameters:
            parameter.grad = None
    rows = torch.stack(gradients)
    return mean_cosine((rows @ rows.t()).double().cpu())


def mean_cosine(products: Tensor) -> float:
    """Mean cosine of two halves' sums, over every way to part n vectors into halves.

    Args:
        products: Their inner products, float64, shape (n, n); with odd n one half has one more.

    Returns:
        In [-1, 1]; NaN where it is not defined for any half.
    """
    count = len(products)
    cosines = []
    for chosen in combinations(range(count), count // 2):
        half = torch.zeros(count, dtype=torch.float64, device="cpu")
        half[list(chosen)] = 1
        other = 1 - half
        norms = (half @ products @ half) * (other @ products @ other)
        cosines.append((half @ products @ other) / norms.sqrt())
    return float(torch.stack(cosines).nanmean())


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
