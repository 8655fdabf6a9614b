"""PolicyModule: builds, evaluates and checkpoints a policy; how it is trained is a subclass's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from aegpo.distributed import own_rows
from aegpo.evaluations import evaluations_by_purpose
from aegpo.image_size import Resolution
from aegpo.noise import KeyedNoise, run_seed
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout import RolloutTree
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.samplers import EULER, Sampler, sampler_name
from lightning_modules.training.fsdp2 import FSDP2
from lightning_modules.training.held_out import Evaluated, HeldOut
from lightning_modules.training.phases import PhaseTimer
from lightning_modules.training.resuming import (
    checkpoint_tensors,
    require_all_weights,
    require_own_checkpoint,
    require_same_make,
)

EVALUATION_NOISE = KeyedNoise(0).fixed()
"""Starting noise of all held-out images: the same in every run, whatever its seed."""

PRECISIONS = ("32-true", "bf16-mixed")
"""`bf16-true` and `16-true` would draw and store latents in half precision, where a ratio is noise;
the loss scale of `16-mixed` is invisible to the norm by which gradients are clipped here."""


class PolicyModule(L.LightningModule):
    """Everything around the training of a policy.

    A callback may keep an average of the trained weights in `averaged` (name to tensor, as
    `Policy.trainable_state_dict`). It travels in the checkpoint, and every command but `fit` then
    loads it in place of the weights, unless `prefers_averaged` is set to false.

    Args:
        policy: Builds the pipeline; called when the run starts, after all settings were checked.
        evaluation_rewards: Rewards measured on the held-out prompts, with different names.
        num_steps: Denoising steps T.
        seed: Key of every random draw; None for the run's `seed_everything`.
        evaluation_steps: Denoising steps of held-out images; None for `num_steps`.
        evaluation_resolution: Their pixels, one number for squares or [height, width]; None for
            the policy's own.
        evaluation_sampler: What takes their steps; None for the model's own scheduler's.

    Raises:
        ValueError: If two rewards share a name, one is named "missing", or there are too few steps.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        evaluation_rewards: list[Reward],
        num_steps: int,
        seed: int | None,
        evaluation_steps: int | None = None,
        evaluation_resolution: Resolution | None = None,
        evaluation_sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        self.evaluation_sampler = evaluation_sampler
        self.evaluation_steps = num_steps if evaluation_steps is None else evaluation_steps
        self.evaluation_resolution = evaluation_resolution
        for name, steps in (("num_steps", num_steps), ("evaluation_steps", self.evaluation_steps)):
            if steps < 2:
                raise ValueError(f"model.{name}={steps} must be at least 2")
        names = [reward.name for reward in evaluation_rewards]
        if len(set(names)) != len(names):
            raise ValueError(
                f"the rewards are named {names}; give each its own name, or list it once: "
                "model.reward is evaluated too"
            )
        if "missing" in names:
            raise ValueError(
                "a reward is named 'missing', which is what the count of missing scores is called "
                "in the log (val/missing); give it another name"
            )
        self.strict_loading = False  # checkpoints hold the trainable tensors only
        self.policy_factory = policy
        self.rewards = evaluation_rewards
        # A held-out prompt has one image, and nothing to compare it with.
        self.evaluation_rewards = [one for one in evaluation_rewards if not one.groupwise]
        self.noise = KeyedNoise(run_seed(seed))
        self.timer = PhaseTimer()
        self.iteration = 0
        self.held_out = HeldOut()
        self.max_missing = 0.5
        self.averaged: dict[str, Tensor] | None = None
        self.prefers_averaged = True
        self.policy: Policy

    def configure_model(self) -> None:
        """Build the policy, once, on the CPU; the strategy moves it.

        Lightning calls this with the accelerator as torch's default device. Tables and encoders
        that are not to be moved would land there, and weights be drawn by another generator.
        """
        if not hasattr(self, "policy"):
            with torch.device("cpu"):
                self.policy = self.policy_factory()
            with self.policy.at_resolution(self.evaluation_resolution):
                pass  # a size that the model does not take is told before anything is drawn

    def setup(self, stage: str) -> None:
        """Refuse what cannot work, before the policy is built; give the rewards their device.

        Args:
            stage: What is about to run.

        Raises:
            ValueError: If the trainer's precision or strategy is none that the policy can run in.
        """
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.trainer.precision} is not supported; use one of "
                f"{', '.join(PRECISIONS)} (and dtype: bfloat16 of the policy for smaller frozen "
                "weights)"
            )
        _refuse_strategy(self.trainer.strategy)
        for reward in self.rewards:
            reward.setup(self.device)

    @contextmanager
    def without_rewards(self) -> Iterator[list[Reward]]:
        """Inside, no reward is set up: one may need gigabytes of weights.

        Yields:
            The rewards that held-out images are scored by, for who sets them up by itself.
        """
        before = self.rewards, self.evaluation_rewards
        self.rewards, self.evaluation_rewards = [], []
        try:
            yield before[1]
        finally:
            self.rewards, self.evaluation_rewards = before

    def draw(self, batch: PromptBatch) -> RolloutTree:
        """Draw one image a prompt with the deterministic sampler and noise fixed by its index."""
        policy, steps = self.policy, self.evaluation_steps
        with ExitStack() as stack:
            stack.enter_context(policy.together())
            stack.enter_context(policy.evaluations.charge("validation"))
            stack.enter_context(policy.at_resolution(self.evaluation_resolution))
            return deterministic_rollout(
                policy,
                batch.prompts,
                batch.index,
                steps,
                EVALUATION_NOISE,
                sampler=self.evaluation_sampler,
            )

    def validation_step(  # type: ignore[override]  # Lightning hands any value on to callbacks
        self, batch: PromptBatch, batch_idx: int
    ) -> Evaluated:
        """Draw this rank's part of the held-out images and score them with every reward."""
        own = batch.select(own_rows(len(batch)))
        tree = self.draw(own)
        scores = {
            reward.name: guarded_scores(reward, tree.images, own.prompts, own.metadata).total
            for reward in self.evaluation_rewards
        }
        return self.held_out.add(batch, own, tree, scores)

    def on_validation_epoch_start(self) -> None:
        """Start a fresh evaluation."""
        self.held_out = HeldOut()

    def on_validation_epoch_end(self) -> None:
        """Log `val/<reward>` and `val/<reward>/<category>`, also of the base before training."""
        metrics = self._held_out_metrics("val")
        if self.trainer.sanity_checking:  # Lightning drops what is logged there
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=self.iteration)
        else:
            self.log_dict(metrics | self.log_step(), rank_zero_only=True)

    test_step = validation_step  # type: ignore[assignment]
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Log `test/<reward>` and `test/<reward>/<category>`."""
        self.log_dict(self._held_out_metrics("test") | self.log_step(), rank_zero_only=True)

    def _held_out_metrics(self, stage: str) -> dict[str, float]:
        """The means, and `<stage>/missing`: the number of scores that are in none of them."""
        missing = self.held_out.count_missing(self.max_missing)
        return self.held_out.metrics(stage) | {f"{stage}/missing": float(missing)}

    def log_step(self) -> dict[str, float]:
        """Return the entry by which Lightning puts a row at its iteration on the x-axis.

        Its own count starts anew in `validate`, which would draw the trained score at 0.
        """
        return {"step": float(self.iteration)}

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Draw one image for each of this rank's prompts, (n, 3, H, W) in [0, 1]."""
        images = self.draw(batch.select(own_rows(len(batch)))).images
        assert images is not None
        return images

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable tensors, the iteration and what all ranks spent; nothing else."""
        checkpoint["state_dict"] = checkpoint_tensors(self.policy.trainable_state_dict())
        checkpoint["aegpo"] = {
            "iteration": self.iteration,
            "evaluations": evaluations_by_purpose(self.policy.evaluations, self.device),
            "made_with": self.policy.made_with
            | {"evaluation_sampler": sampler_name(self.evaluation_sampler)},
        }
        if self.averaged is not None:
            checkpoint["aegpo"]["averaged"] = self.averaged

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from `on_save_checkpoint`, unless the checkpoint is of another make.

        Args:
            checkpoint: The file's content.

        Raises:
            ValueError: If it is, or if it lacks a trained tensor or holds one too many.
        """
        require_own_checkpoint(checkpoint)
        self.configure_model()
        unnamed = {"evaluation_sampler": EULER, "lora_beneath": ""}  # in files of earlier versions
        made_with = unnamed | checkpoint["aegpo"].get("made_with", {})
        evaluated = {"evaluation_sampler": sampler_name(self.evaluation_sampler)}
        require_same_make(made_with, self.policy.made_with | evaluated)
        require_all_weights(self.policy, checkpoint["state_dict"])
        self.iteration = int(checkpoint["aegpo"]["iteration"])
        self.policy.evaluations.load_state_dict(checkpoint["aegpo"]["evaluations"])
        self.averaged = checkpoint["aegpo"].get("averaged")
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting:
            # The run that wrote it has this score where it was due, and its costs too.
            self.trainer.num_sanity_val_steps = 0
        if self.averaged is not None and self.prefers_averaged and not fitting:
            checkpoint["state_dict"] = checkpoint_tensors(self.averaged)


def _refuse_strategy(strategy: object) -> None:
    """Raise where a strategy of Lightning's cannot train a policy.

    Args:
        strategy: The trainer's.

    Raises:
        ValueError: If it is one of those.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "trainer.strategy=fsdp flattens the parameters that checkpoints and the reference "
            "policy need one by one; use fsdp2, which keeps them apart, or ddp"
        )
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2):
        raise ValueError(
            "trainer.strategy=ModelParallelStrategy leaves the sharding to the module; "
            "use fsdp2, which is the same with the sharding that a policy needs, or ddp"
        )
    if isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            "trainer.strategy=deepspeed is untested here, and its checkpoints would not be those "
            "of one process; use fsdp2 for models that do not fit one card, else ddp"
        )
