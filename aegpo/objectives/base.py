"""The objective: how a rollout and its rewards become a loss."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from aegpo.exploration import ExplorationSchedule, StepSelector
from aegpo.exploration.half_batches import HalvesByStep
from aegpo.noise import KeyedNoise
from aegpo.objectives.samples import Samples
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning
from aegpo.remembering import Remembering
from aegpo.rollout import RolloutTree
from aegpo.sde import SDE


@dataclass(frozen=True, eq=False)
class Experience:
    """One iteration's rollout and what it earned: all that an objective may learn from.

    Args:
        policy: The policy that is updated.
        sde: The SDE of the rollout.
        cond: Conditioning of the batch's prompts, B rows.
        tree: The rollout.
        schedule: Its exploration schedule, B rows.
        rewards: Reward of each image, NaN where it failed, shape (N,).
        advantages: Advantage of each image within its group, times its weight, NaN where its reward
            failed or a selection left it out, shape (N,).
        index: Dataset row of each prompt, shape (B,) int64.
        noise: Keyed noise of the iteration.
        weights: What a selection of images gave each of them, 0 where it left one out, shape (N,);
            None if it chose none.
        agreement: What learns from the gradients of the stochastic steps; None if nothing does.
    """

    policy: Policy
    sde: SDE
    cond: Conditioning
    tree: RolloutTree
    schedule: ExplorationSchedule
    rewards: Tensor
    advantages: Tensor
    index: Tensor
    noise: KeyedNoise
    weights: Tensor | None = None
    agreement: HalvesByStep | None = None


class Objective(Remembering, abc.ABC):
    """What the updates minimize, and which weights draw the rollouts."""

    draws_noise: bool = True
    """Whether rollouts draw noise at the steps that the selector chose."""

    weight_copies: int = 0
    """Copies of the trained weights that it keeps."""

    gradient_copies: int = 0
    """Copies of the trained gradients that it measures with."""

    learns_from_steps: bool = False
    """Whether its samples are the stochastic steps themselves."""

    @abc.abstractmethod
    def samples(self, experience: Experience) -> Samples:
        """Make training samples of a rollout.

        Args:
            experience: The rollout of this rank's prompts.

        Returns:
            Samples that know their loss.
        """

    def validate(self, step_selector: StepSelector, num_steps: int) -> None:
        """Check that there will be something to learn from, before any model is loaded.

        Args:
            step_selector: What chooses the stochastic steps.
            num_steps: T, the number of denoising steps.

        Raises:
            ValueError: If the objective cannot work with them.
        """
        del step_selector, num_steps

    def behavior(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside this context the policy predicts as the one that draws the rollouts.

        Args:
            policy: The policy that is trained; it draws its own rollouts unless overridden.

        Returns:
            The context; contexts may be nested.
        """
        del policy
        return nullcontext()

    def end_iteration(self, policy: Policy, iteration: int) -> None:
        """Take note that the updates of an iteration are done.

        Args:
            policy: The policy as they left it.
            iteration: The training iteration, from 0.
        """
        del policy, iteration
