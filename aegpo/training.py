"""A training as callbacks see it: the attributes that they share with the module they watch.

Callbacks and modules do not import each other; they meet here, and mypy compares both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from aegpo.allocation import Allocator
from aegpo.entropy import EntropyReading, EntropyRecorder, Recording
from aegpo.exploration import ExplorationSchedule, StepSelector
from aegpo.image_counts import ImageCounts
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.group import group_diversity
from aegpo.rollout import RolloutTree, RolloutWarmup
from aegpo.samplers import Sampler
from aegpo.sde import SDE
from aegpo.selection import Selection


@dataclass(frozen=True)
class Iteration:
    """One iteration as this rank saw it.

    Attributes:
        batch: This rank's prompts, B rows.
        schedule: Their exploration schedule.
        group_sizes: Images per prompt, shape (B,).
        tree: The rollout.
        rewards: Reward of each image, NaN where it failed, shape (N,).
        weights: Weight of each image in the loss, 0 where it was left out, shape (N,); None if all
            were trained on alike.
    """

    batch: PromptBatch
    schedule: ExplorationSchedule
    group_sizes: Tensor
    tree: RolloutTree
    rewards: Tensor
    weights: Tensor | None = None

    @cached_property
    def group_diversity(self) -> Tensor:
        """Distance of each group's images from their mean, for groups with a whole image, (G,)."""
        assert self.tree.images is not None  # training always decodes
        images = self.tree.images.float()
        whole = images.isfinite().flatten(1).all(1)
        return group_diversity(images[whole], self.tree.row[whole])


class Phases(Protocol):
    """Wall-clock seconds by phase of a training step."""

    def measure(self, phase: str) -> AbstractContextManager[None]:
        """Add the time spent inside to a phase."""

    def reset(self) -> dict[str, float]:
        """Return the seconds since the last call by phase, and start again from zero."""


class HeldOutScores(Protocol):
    """The scores of the latest evaluation."""

    def metrics(self, stage: str = "val") -> dict[str, float]:
        """Return the means of all ranks, `<stage>/<reward>` and `<stage>/<reward>/<category>`."""


class Training(Protocol):
    """The module that trains a policy, `lightning_modules.AEGPOModule`.

    A callback sets `entropy`, `recorder` and `averaged`, before the step that they are for, and
    reads the rest. What `iteration` counts is the same in every hook but one: at the end of a batch
    it is the number of iterations done, so the one that has just ended is `iteration - 1`.
    """

    entropy: EntropyReading | None
    """The reading of the coming batch: what the selector and the allocator decide by."""

    recorder: EntropyRecorder | None
    """What watches the coming rollout, if anything does."""

    averaged: dict[str, Tensor] | None
    """An average of the trained weights by name, which is what is evaluated and exported."""

    recording: Recording | None
    """What `recorder` saw of the latest rollout, on this rank."""

    last: Iteration
    """The latest iteration; there is none before the first one has ended."""

    iteration: int
    """Training iterations done, also over resumed runs."""

    policy: Policy
    """The policy that is trained."""

    noise: KeyedNoise
    """The run's noise; `noise.at(iteration)` is an iteration's."""

    sde: SDE
    """The stochastic step of the rollouts."""

    reward: Reward
    """What is maximized."""

    evaluation_rewards: list[Reward]
    """What the held-out images are scored by, on every rank alike; the above may be one of them."""

    step_selector: StepSelector
    """What chooses the steps that explore."""

    allocator: Allocator
    """What chooses how many images a prompt gets."""

    @property
    def selection(self) -> Selection:
        """What chooses the images that are trained on."""

    images: ImageCounts
    """Images drawn, scored and trained on by this rank."""

    @property
    def num_steps(self) -> int:
        """Denoising steps T of a rollout."""

    warmup: RolloutWarmup | None
    """How a run's first iterations draw and choose otherwise; None where they do not."""

    @property
    def sampler(self) -> Sampler | None:
        """What takes the steps of a rollout that draw no noise; None for the Euler step."""

    shared_start: bool
    """Whether the images of a prompt start from the same noise."""

    inner_epochs: int
    """Passes over the samples of one rollout."""

    updates_per_epoch: int
    """Optimizer steps in one pass."""

    micro_batch_size: int | Literal["auto"]
    """Samples evaluated together in an update; "auto" until that is chosen."""

    reward_time_limit: float | None
    """Seconds per image that a call of a reward may take; None for any."""

    @property
    def timer(self) -> Phases:
        """The clock of a training step."""

    @property
    def held_out(self) -> HeldOutScores:
        """The scores of the latest evaluation."""

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""

    def log(self, name: str, value: float, *, rank_zero_only: bool = False) -> None:
        """Log a number, as Lightning does."""

    def log_dict(self, dictionary: Mapping[str, float], *, rank_zero_only: bool = False) -> None:
        """Log numbers by tag, as Lightning does."""
