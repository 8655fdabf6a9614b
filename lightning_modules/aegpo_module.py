"""AEGPO as a LightningModule: one training step is one rollout and its updates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from aegpo.advantages import GroupRelative
from aegpo.allocation import Allocator
from aegpo.allocation.sharding import shard
from aegpo.distributed import all_gather_rows, all_reduce_sum, is_sharded, world
from aegpo.entropy import EntropyReading, EntropyRecorder, Recording
from aegpo.exploration import ExplorationSchedule, StepSelector
from aegpo.image_counts import ImageCounts
from aegpo.image_size import Resolution, bucket_of
from aegpo.noise import KeyedNoise
from aegpo.objectives import Credit, Experience, Objective, Pruning, TransitionWeight
from aegpo.objectives.samples import LossTerms, Samples
from aegpo.objectives.transition_samples import KLNormalization
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout import RolloutTree, RolloutWarmup, rollout
from aegpo.samplers import EULER, Sampler, sampler_name
from aegpo.sde import SDE
from aegpo.selection import AllImages, Previews, Selection
from aegpo.selection.previews import PreviewedRollout
from aegpo.training import Iteration, Training
from aegpo.utilities.halving import halving
from lightning_modules.policy_module import PolicyModule
from lightning_modules.training.decision import Decision
from lightning_modules.training.fitting import Auto, Fitting
from lightning_modules.training.fsdp2 import FSDP2
from lightning_modules.training.metrics import UpdateMeter, reward_metrics
from lightning_modules.training.optimizer_step import no_gradient_sync, optimizer_step
from lightning_modules.training.phases import timed
from lightning_modules.training.resuming import (
    hide_later_points,
    hyperparameters,
    keep_hyperparameters,
    require_same_make,
)
from lightning_modules.training.scoring import Drawn, Scoring, limit_time
from lightning_modules.training.settings import (
    check_parts,
    check_previews,
    check_rollout,
    check_sampler,
    check_selection,
    check_update,
    check_warmup,
    choose_objective,
)
from lightning_modules.training.skipped_steps import SkippedSteps


class AEGPOModule(PolicyModule):
    """Trains a policy against a reward: GRPO on rollout trees, steered by attention entropy.

    Callbacks publish what they measure in `entropy` (an `EntropyReading` of the batch, or None);
    without such a callback the selector and the allocator fall back to fixed rules, and what
    remains is the uniform baseline. An `EntropyRecorder` that a callback puts into `recorder`
    watches the rollouts, and what it saw of the last one, on this rank, is in `recording`.

    Args:
        policy: The pipeline to train. It is built when the run starts, after all other settings
            have been checked.
        reward: What is maximized.
        sde: The stochastic step.
        step_selector: Which denoising steps explore, for each prompt.
        allocator: How many images each prompt gets.
        optimizer: Optimizer of the trainable parameters.
        lr_scheduler: Learning-rate schedule, advanced once per iteration; None keeps the rate.
        advantage: How rewards become advantages; None for the group-relative one.
        selection: Which of the images that were drawn are trained on; None for all of them.
        previews: What ends the drawing of images early that `selection` would leave out by their
            previews; None finishes all.
        credit: How a tree hands the images' advantages down to its transitions; None for the mean
            of the images below.
        pruning: Which transitions are left out of the update; None for none.
        transition_weight: Weight of a transition in the loss by its step; None for equal weights.
        objective: What is minimized instead of the policy gradient, to which `credit`, `pruning`,
            `transition_weight`, `clip_range`, `divergence_bound`, `kl_coeff` and
            `kl_normalization` belong; None for it.
        evaluation_rewards: Rewards that are only measured on the held-out prompts, beside
            `reward`.
        num_steps: Denoising steps T of rollouts.
        sampler: What takes the steps of rollouts and of the entropy probe that draw no noise; None
            for the Euler step.
        warmup: How the images of the first iterations are drawn and chosen, in place of
            `num_steps`, `sampler` and `selection`; None for like all others.
        clip_range: Half width of the clip on the ratio of per-dimension mean log-probs.
        divergence_bound: KL to the policy that drew a transition, per dimension, from which on it
            is dropped if its gradient would raise that (Flow-DPPO), in place of the clip; None for
            the clip.
        kl_coeff: Weight of the KL to the reference policy; 0 skips the reference evaluations.
        kl_normalization: "variance" for the KL of the steps itself; "diffusion" for Flow-GRPO's,
            the KL times the step's length in sigma, for which its coefficients are meant.
        unguided: Draw, train and evaluate without classifier-free guidance, whatever the policy's
            own scale; guidance that a distilled model takes as an input stays.
        inner_epochs: Passes over one rollout's samples, for the policy gradient its transitions.
        updates_per_epoch: Optimizer steps in one such pass.
        micro_batch_size: Samples evaluated together in an update, or "auto" for as many as fit into
            memory, and on a CPU into its cache, by a measurement at the first update. Halved for
            the rest of the run where memory runs out.
        max_grad_norm: Gradients are scaled down to this norm.
        max_skipped_steps: Optimizer steps in a row that are skipped because their loss or gradient
            is not finite, at which the run stops.
        shared_start: Whether all rollouts of a prompt start at the same noise and share their
            deterministic prefix.
        split_scale: Correlates the noise of siblings by 1 / (1 + split_scale²), as BranchGRPO does
            with 4; None draws it independently.
        max_missing: Share of failed rewards above which an iteration is bad: the third bad one in a
            row stops the run, or the first if no reward ever came. Of the held-out images no more
            may fail.
        reward_time_limit: Seconds per image that a call of a reward may take; beyond it the call is
            given up, made again prompt by prompt, and what still takes longer is missing. None
            waits for ever.
        overlap_chunks: Into how many chunks of prompts a rollout is divided, each scored in a
            thread while the next is drawn; 1 scores after the rollout. For rewards that wait.
        seed: Key of every random draw; None for the run's `seed_everything`.
        evaluation_steps: Denoising steps of held-out images; None for `num_steps`.
        evaluation_resolution: Their pixels, one number for squares or [height, width]; None for
            the policy's own.
        evaluation_sampler: What takes their steps; None for the model's own scheduler's.

    Raises:
        ValueError: If a setting contradicts another one.
    """

    def __init__(  # noqa: PLR0913  # the parts of a step and their settings
        self,
        policy: Callable[[], Policy],
        reward: Reward,
        sde: SDE,
        step_selector: StepSelector,
        allocator: Allocator,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        advantage: GroupRelative | None = None,
        selection: Selection | None = None,
        previews: Previews | None = None,
        credit: Credit | None = None,
        pruning: Pruning | None = None,
        transition_weight: TransitionWeight | None = None,
        objective: Objective | None = None,
        evaluation_rewards: list[Reward] | None = None,
        num_steps: int = 10,
        sampler: Sampler | None = None,
        warmup: RolloutWarmup | None = None,
        clip_range: float = 1e-3,
        divergence_bound: float | None = None,
        kl_coeff: float = 0.0,
        kl_normalization: KLNormalization = "variance",
        unguided: bool = False,
        inner_epochs: int = 1,
        updates_per_epoch: int = 2,
        micro_batch_size: int | Auto = 64,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 10,
        shared_start: bool = False,
        split_scale: float | None = None,
        max_missing: float = 0.5,
        reward_time_limit: float | None = None,
        overlap_chunks: int = 1,
        seed: int | None = None,
        evaluation_steps: int | None = None,
        evaluation_resolution: Resolution | None = None,
        evaluation_sampler: Sampler | None = None,
    ) -> None:
        super().__init__(
            policy,
            [reward, *(evaluation_rewards or [])],
            num_steps,
            seed,
            evaluation_steps,
            evaluation_resolution,
            evaluation_sampler,
        )
        check_update(
            max_grad_norm,
            inner_epochs=inner_epochs,
            updates_per_epoch=updates_per_epoch,
            micro_batch_size=1 if micro_batch_size == "auto" else micro_batch_size,
        )
        self.fitting = Fitting(micro_batch_size)
        self.advantage, self.clip_range = advantage or GroupRelative(), clip_range
        check_parts(self.advantage, reward, credit)
        self.reward_time_limit = reward_time_limit
        limit_time(self.rewards, reward_time_limit)
        self.scoring, self.max_missing = Scoring(reward, overlap_chunks, max_missing), max_missing
        self.objective = choose_objective(
            objective,
            clip_range=clip_range,
            divergence_bound=divergence_bound,
            kl_coeff=kl_coeff,
            kl_normalization=kl_normalization,
            transition_weight=transition_weight,
            credit=credit,
            pruning=pruning,
            advantage=self.advantage,
        )
        check_rollout(step_selector, self.objective, num_steps, shared_start, split_scale)
        check_sampler(sampler, step_selector, self.objective)
        check_warmup(warmup, step_selector, self.objective, previews)
        self.automatic_optimization = False
        self.reward, self.sde, self.images = reward, sde, ImageCounts()
        self.warmup, self._num_steps, self._sampler = warmup, num_steps, sampler
        self._selection = selection or AllImages()
        check_selection(self._selection, step_selector, self.objective)
        check_previews(previews, self._selection, step_selector, self.objective, overlap_chunks)
        self.previews = previews
        self.previewed: PreviewedRollout | None = None
        self.step_selector, self.allocator = step_selector, allocator
        self.optimizer_factory, self.lr_scheduler_factory = optimizer, lr_scheduler
        self.inner_epochs, self.updates_per_epoch = inner_epochs, updates_per_epoch
        self.micro_batch_size: int | Auto = micro_batch_size
        self.max_grad_norm = max_grad_norm
        self.skipped = SkippedSteps(max_skipped_steps)
        self.shared_start, self.split_scale = shared_start, split_scale
        self.unguided = unguided
        self.entropy: EntropyReading | None = None
        self.recorder: EntropyRecorder | None = None
        self.recording: Recording | None = None
        self.last: Iteration

    @property
    def _warming(self) -> RolloutWarmup | None:
        """The warm-up, as long as it lasts."""
        warmup = self.warmup
        return None if warmup is None or not warmup.lasts(self.iteration) else warmup

    @property
    def num_steps(self) -> int:
        """Denoising steps of the coming iteration's rollout."""
        return self._num_steps if self._warming is None else self._warming.num_steps

    @property
    def sampler(self) -> Sampler | None:
        """What takes those of them that draw no noise; None for the Euler step."""
        return self._sampler if self._warming is None else self._warming.sampler

    @property
    def selection(self) -> Selection:
        """Which of its images are trained on."""
        warming = self._warming
        return self._selection if warming is None else warming.selection or self._selection

    def configure_model(self) -> None:
        """Build the policy, once, with the guidance that it is trained with."""
        super().configure_model()
        if self.unguided:
            self.policy.guidance_scale = 1.0

    def setup(self, stage: str) -> None:
        """Check the settings against the prompts, before the policy is built."""
        super().setup(stage)
        if self.micro_batch_size == "auto" and isinstance(self.trainer.strategy, FSDP2):
            raise ValueError(
                "model.micro_batch_size=auto measures what a rank keeps by itself, and with "
                "trainer.strategy=fsdp2 every call is one of all ranks; give a number"
            )
        batch_size = getattr(self.trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if stage == "fit" and batch_size is not None:
            self.allocator.validate(batch_size)
            ranks, _ = world()
            if batch_size < ranks:
                rank_zero_warn(
                    f"data.batch_size={batch_size} prompts over all ranks leave "
                    f"{ranks - batch_size} of {ranks} ranks without one, as a group is never "
                    "split; raise it or use fewer devices"
                )

    def configure_optimizers(self) -> Any:
        """Build the optimizer over the trainable parameters."""
        optimizer = self.optimizer_factory(self.policy.trainable_parameters())
        self.optimizer_settings = hyperparameters(optimizer)
        if self.lr_scheduler_factory is None:
            return optimizer
        return [optimizer], [self.lr_scheduler_factory(optimizer)]

    def on_train_start(self) -> None:
        """Let this run's optimizer settings win over a checkpoint's; draw nothing twice."""
        hide_later_points(self.trainer.loggers, self.iteration)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        keep_hyperparameters(
            optimizer.optimizer,  # type: ignore[union-attr]
            self.optimizer_settings,
            [] if scheduler is None else [scheduler],
        )

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration: decide, draw and score, compare, update; all of it at one image size."""
        bucket = bucket_of(self.policy.buckets, self.noise, self.iteration)
        with self.policy.at_resolution(bucket):
            decision = self.decide(batch)
            experience = self.collect(batch, decision)
            self.update(experience)
        if bucket is not None:
            size = {"rollout/height": float(bucket.height), "rollout/width": float(bucket.width)}
            self.log_dict(size, rank_zero_only=True)
        self.skipped.require_progress(
            self.policy, batch, decision.mine, experience.rewards, experience.tree.row
        )
        self.last = Iteration(
            batch.select(decision.mine),
            experience.schedule,
            decision.group_sizes[decision.mine],
            experience.tree,
            experience.rewards,
            experience.weights,
        )
        self.iteration += 1
        self.log_dict(self.log_step(), rank_zero_only=True)

    def decide(self, batch: PromptBatch) -> Decision:
        """Choose steps and group sizes by `entropy`, and this rank's prompts.

        Args:
            batch: The prompts of all ranks, B rows.

        Returns:
            The same steps and sizes on every rank; its own rows.
        """
        noise = self.noise.at(self.iteration)
        sizes = self.allocator(self.entropy, len(batch))
        schedule = self.step_selector(self.entropy, noise, batch.index, self.num_steps)
        return Decision(noise, schedule.fit(sizes), sizes, shard(sizes, *world()))

    def collect(self, whole: PromptBatch, decision: Decision) -> Experience:
        """Draw, score and compare the images of this rank's prompts.

        Args:
            whole: The prompts of all ranks.
            decision: What to draw of them.

        Returns:
            All that the objective may learn from.
        """
        batch, own = whole.select(decision.mine), decision.own()
        cond = self.encode(batch)
        tree, pending = self.explore(batch, cond, own)
        scores = self.score(pending)
        if self.previewed is not None:
            self.previewed.learn(scores.total, tree.row)
        advantages = self.advantages(tree, scores, whole, decision.mine)
        advantages, weights = self.select(advantages, tree, batch.index, own.noise)
        return Experience(
            policy=self.policy,
            sde=self.sde,
            cond=cond,
            tree=tree,
            schedule=own.schedule,
            rewards=scores.total,
            advantages=advantages,
            index=batch.index,
            noise=own.noise,
            weights=weights,
            agreement=self.step_selector.agreement,
        )

    @timed("encode")
    def encode(self, batch: PromptBatch) -> Conditioning:
        """Encode the prompts; known texts come from the cache."""
        return self.policy.encode(batch.prompts)

    @timed("rollout")
    def explore(self, batch: PromptBatch, cond: Conditioning, own: Decision) -> Drawn:
        """Draw the images of this rank's prompts; with `overlap_chunks` also start to score them.

        Args:
            batch: This rank's prompts.
            cond: Their conditioning.
            own: The decision on them, a row for each.

        Returns:
            The rollout, and what gives its scores.
        """
        schedule = own.schedule
        if not self.objective.draws_noise:
            schedule = ExplorationSchedule.deterministic(len(batch), self.num_steps)
        with ExitStack() as stack:
            stack.enter_context(self.policy.together())
            stack.enter_context(self.objective.behavior(self.policy))
            stack.enter_context(self.policy.evaluations.charge("rollout"))
            self.recording, self.previewed = None, self._previewed(batch, own)
            if self.recorder is not None:
                self.scoring.require_one_chunk()
                self.recording = stack.enter_context(self.recorder.record(self.policy))
            return self.scoring.draw_and_score(
                lambda rows: rollout(
                    self.policy,
                    self.sde,
                    cond.select(rows),
                    schedule.select(rows),
                    own.group_sizes[rows],
                    own.noise,
                    batch.index[rows],
                    shared_start=self.shared_start,
                    split_scale=self.split_scale,
                    sampler=self.sampler,
                    observer=self.recording,
                    stopper=self.previewed,
                ),
                batch,
            )

    def _previewed(self, batch: PromptBatch, own: Decision) -> PreviewedRollout | None:
        """What looks on at the rollout and may end parts of it, if anything does."""
        if self.previews is None:
            return None

        def score(clean: Tensor, row: Tensor) -> Tensor:
            shown = batch.repeat(row)
            images = self.policy.decode(clean)
            return guarded_scores(self.reward, images, shown.prompts, shown.metadata).total

        return self.previews.begin(self.selection, score, own.noise, batch.index, self.num_steps)

    @timed("reward")
    def score(self, pending: Callable[[], Scores]) -> Scores:
        """Score the images, or wait for the scores; too many missing ones stop the run."""
        scores = pending()
        self.scoring.require_enough(scores.total, self.iteration)
        return scores

    @timed("advantage")
    def advantages(
        self, tree: RolloutTree, scores: Scores, whole: PromptBatch, mine: Tensor
    ) -> Tensor:
        """Compare every image with its group; statistics are taken over all ranks.

        Args:
            tree: The rollout of this rank's prompts.
            scores: Scores of its N images.
            whole: The prompts of all ranks.
            mine: This rank's rows of them.

        Returns:
            Advantage of each image, NaN where its reward failed, shape (N,).
        """
        gathered, own = scores.over_ranks()
        groups, _ = all_gather_rows(mine.to(tree.row.device)[tree.row])
        compared = self.advantage.of_scores(gathered, self.reward.part_weights, groups)
        self.log_dict(reward_metrics(gathered, groups, whole, compared), rank_zero_only=True)
        return compared.values[own].masked_fill(scores.total.isnan(), float("nan"))

    @timed("advantage")
    def select(
        self, advantages: Tensor, tree: RolloutTree, index: Tensor, noise: KeyedNoise
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the images to train on, and count them.

        Args:
            advantages: Advantage of each image, NaN where its reward failed, shape (N,).
            tree: The rollout of this rank's prompts.
            index: Their dataset rows, shape (B,) int64.
            noise: Keyed noise of the iteration.

        Returns:
            The advantages to learn from, NaN where an image is left out, shape (N,), and the weight
            of each image, 0 where it is left out, shape (N,); None for all alike.
        """
        weights = self.selection(advantages, tree.row, index, noise)
        advantages = self.selection.trained_on(advantages, weights, tree.row)
        kept = int(advantages.isfinite().sum())
        previews = 0 if self.previewed is None else self.previewed.scored
        self.images.add(images=len(tree), rewards=len(tree) + previews, images_trained=kept)
        if self.previewed is not None:
            total = all_reduce_sum(float(previews), self.device)
            self.log("rollout/previews", total, rank_zero_only=True)
        if weights is not None:
            total = all_reduce_sum(float(kept), self.device)
            self.log("rollout/images_trained", total, rank_zero_only=True)
            # Away from 0 the policy is also pushed to, or from, its own images, good or bad.
            common = all_reduce_sum(float(advantages.double().nansum()), self.device)
            self.log("rollout/advantage_mean", common / max(total, 1.0), rank_zero_only=True)
        return advantages, weights

    @timed("update")
    def update(self, experience: Experience) -> None:
        """Inner epochs of optimizer steps over the samples that the objective makes of it."""
        samples = self.objective.samples(experience)
        updates = samples.split(experience.index, self.updates_per_epoch, experience.noise)
        totals = [max(all_reduce_sum(float(len(which)), self.device), 1.0) for which in updates]
        updates = [samples.active(which) for which in updates]
        self._fit(samples, updates)
        own = samples.first_is_old or self._below_fp32()
        rescored = updates[1:] if own else None
        if rescored is not None:
            with self.policy.together():
                samples.rescore(self._micro_batches(rescored, self._size))
        meter, parameters = UpdateMeter(self.device), self.policy.trainable_parameters()
        for _ in range(self.inner_epochs):
            for which, total in zip(updates, totals, strict=True):
                first = not meter.steps
                parts = samples.strata(which) if first else [which]
                which = torch.cat(parts)
                losses = self._backward(samples, parts, total, rescored if first else None)
                values = torch.cat([torch.zeros(0, device=self.device), *(x.loss for x in losses)])
                step = optimizer_step(self.optimizers(), parameters, self.max_grad_norm, values)
                meter.add(losses, step)
                number = f"step {len(meter.steps)} of iteration {self.iteration}"
                self.skipped.note(step.taken, number, samples.row[which], values)
        if rescored is not None and samples.change is not None:
            largest = all_gather_rows(samples.change[None])[0].max()
            self.log("ratio/rollout_max_dev", largest, rank_zero_only=True)
        self.objective.end_iteration(self.policy, self.iteration)
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]
        metrics = meter.metrics() | self.objective.metrics() | self.step_selector.metrics()
        metrics |= {} if self.previews is None else self.previews.metrics()
        self.log_dict(metrics, rank_zero_only=True)

    def _backward(
        self,
        samples: Samples,
        parts: list[Tensor],
        total: float,
        rescored: list[Tensor] | None,
    ) -> list[LossTerms]:
        """Add up the gradients of an optimizer step, in micro-batches that fit into memory.

        Args:
            samples: The samples of this rank.
            parts: Those of the step, each of shape (n,) int64; the gradients of several are noted.
            total: How many samples all ranks have in it.
            rescored: Before the first step, where its old predictions are its own, the samples of
                the later ones, whose old predictions are to be of the same micro-batches as the new
                ones; else None.

        Returns:
            The loss of each micro-batch, without its graph.
        """
        counter = self.policy.evaluations
        spent = dict(counter.counts)
        score = samples.loss if rescored is None else samples.first_loss

        def backward(size: int) -> list[LossTerms]:
            losses = []
            for number, part in enumerate(parts):
                for micro_batch in self._padded(self._micro_batches([part], size)):
                    with self.policy.together() as idle:
                        loss = None if micro_batch is None else score(micro_batch)
                    own = None if loss is None else loss.loss.sum() / total
                    if (padded := idle.join(own)) is not None:
                        self.manual_backward(padded)
                    if loss is not None:
                        losses.append(loss._replace(loss=loss.loss.detach()))
                if len(parts) > 1:
                    samples.note_gradients(number, self.policy.trainable_parameters())
            return losses

        def undo(size: int) -> None:
            for parameter in self.policy.trainable_parameters():
                parameter.grad = None
            if rescored is not None:
                samples.rescore(self._micro_batches(rescored, size))
            counter.counts = dict(spent)

        with no_gradient_sync(self.trainer.strategy):
            losses, self.micro_batch_size = halving(
                backward,
                sum(map(len, parts)),
                self._size,
                setting="model.micro_batch_size",
                undo=undo,
                possible=not is_sharded(self.policy.denoiser),
            )
        return losses

    def _fit(self, samples: Samples, updates: list[Tensor]) -> None:
        """Choose what is `auto` in how updates are computed, at the first one that has samples."""
        size = self.fitting.choose(self.policy, samples.loss, updates)
        if size is not None:
            self.micro_batch_size = size

    @property
    def _size(self) -> int:
        """Samples of a micro-batch; any number before there was a sample to choose by."""
        return 1 if self.micro_batch_size == "auto" else self.micro_batch_size

    @staticmethod
    def _micro_batches(updates: list[Tensor], size: int) -> list[Tensor]:
        return [micro for which in updates if len(which) > 0 for micro in which.split(size)]

    def _padded(self, micro_batches: list[Tensor]) -> list[Tensor | None]:
        """As many micro-batches as the rank with most has, if backward passes are collectives."""
        if self.policy.lockstep is None:
            return list(micro_batches)
        most = int(all_gather_rows(torch.tensor([len(micro_batches)], device="cpu"))[0].max())
        return [*micro_batches, *[None] * (most - len(micro_batches))]

    def _below_fp32(self) -> bool:
        dtypes = {parameter.dtype for parameter in self.policy.denoiser.parameters()}
        return dtypes != {torch.float32} or torch.is_autocast_enabled(self.device.type)

    def _drawn_and_trained_by(self) -> dict[str, str]:
        optimizer = self.optimizer_factory([nn.Parameter(torch.zeros(1, device="cpu"))])
        return {"optimizer": type(optimizer).__name__, "sampler": sampler_name(self._sampler)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the objective has to remember."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["aegpo"]["objective"] = self.objective.state_dict()
        checkpoint["aegpo"]["step_selector"] = self.step_selector.state_dict()
        if self.previews is not None:
            checkpoint["aegpo"]["previews"] = self.previews.state_dict()
        checkpoint["aegpo"]["images"] = self.images.over_ranks(self.device)
        checkpoint["aegpo"]["fitting"] = self.fitting.state_dict(self.micro_batch_size)
        checkpoint["aegpo"]["made_with"] |= self._drawn_and_trained_by()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from `on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            made_with = {"sampler": EULER} | checkpoint["aegpo"].get("made_with", {})
            require_same_make(made_with, self._drawn_and_trained_by())
            self.fitting.load_state_dict(checkpoint["aegpo"].get("fitting", {}))
            self.images.load_state_dict(checkpoint["aegpo"].get("images", {}))
        self.objective.load_state_dict(checkpoint["aegpo"].get("objective", {}))
        self.step_selector.load_state_dict(checkpoint["aegpo"].get("step_selector", {}))
        if self.previews is not None:
            self.previews.load_state_dict(checkpoint["aegpo"].get("previews", {}))


if TYPE_CHECKING:
    # mypy compares the module with what callbacks expect of it.
    _TRAINING: type[Training] = AEGPOModule
