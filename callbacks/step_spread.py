"""TrialSpread and TreeSpread: the reward variance of each step, in the place of Entropy(t)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows, all_reduce_sum, own_rows
from aegpo.entropy.reading import EntropyReading
from aegpo.planning.counts import PlansEvaluations, Range, RunShape
from aegpo.prompts import PromptBatch
from aegpo.study.split_variance import split_variance
from aegpo.study.step_trials import single_step_groups
from aegpo.study.step_variance import StepVariance, VarianceTerms, trial_variance
from aegpo.training import Training
from callbacks.order import refuse_probe_after


class StepSpread(L.Callback, PlansEvaluations):
    """Publishes as the curve how much of the reward's variance each step's noise explains.

    All prompts get the same curve, a running estimate over iterations, prompts and ranks. ΔEntropy
    stays that of the callbacks before it, or unknown without them.

    Args:
        decay: Weight of a measurement after the next one, in [0, 1).
        revisit_every: Iterations after which a step that was not measured is put first again; None
            for never.
    """

    publishes = ("curve",)

    def __init__(self, decay: float, revisit_every: int | None) -> None:
        StepVariance(2, decay, revisit_every)  # refuses wrong values before the run starts
        self.decay, self.revisit_every = decay, revisit_every
        self.variance: StepVariance | None = None
        self._restored: dict[str, Tensor] | None = None

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        """Check that no probe takes the curve away again, and that steps keep their number."""
        refuse_probe_after(trainer, self)
        warmup = pl_module.warmup
        if warmup is not None:
            raise ValueError(
                f"{type(self).__name__} knows steps by their number, and model.warmup draws in "
                f"{warmup.num_steps} at first; leave one of them out"
            )

    def _estimate(self, pl_module: Training) -> StepVariance:
        """The running estimate; it takes up a checkpoint when the number of steps is known."""
        if self.variance is None:
            self.variance = StepVariance(pl_module.num_steps, self.decay, self.revisit_every)
            if self._restored is not None:
                self.variance.load_state_dict(self._restored)
        return self.variance

    def _publish(self, pl_module: Training, num_prompts: int) -> None:
        reading = pl_module.entropy
        curve = self._estimate(pl_module).curve(pl_module.iteration).float()
        delta = None if reading is None else reading.delta
        pl_module.entropy = EntropyReading(curve.expand(num_prompts, -1), delta)

    def _remember(
        self, pl_module: Training, index: Tensor, terms: VarianceTerms, iteration: int
    ) -> None:
        """Add what all ranks measured; `index` are the dataset rows of this rank's prompts."""
        own = torch.cat([index.cpu().double()[:, None], terms.squares, terms.freedom], dim=1)
        rows, _ = all_gather_rows(own)
        rows = rows[rows[:, 0].argsort()]  # sums round alike, whatever rank held which prompt
        squares, freedom = rows[:, 1:].chunk(2, dim=1)
        self._estimate(pl_module).update(VarianceTerms(squares, freedom), iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the running estimate."""
        if self.variance is None:  # restored, and saved again before the first batch
            return dict(self._restored or {})
        return dict(self.variance.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._restored, self.variance = dict(state_dict) or None, None


class TrialSpread(StepSpread):
    """Measures the steps by single-step trials: what `EntropyPeaks` on entropy has to reach.

    Every few iterations some prompts get, for each step, a few images that share their starting
    noise and draw noise at that step alone; the variance of their rewards is what the step
    explains. With `EntropyPeaks` this is the oracle of step choice. A prompt costs
    ``sum(t + 1 + images * (T - 1 - t))`` evaluations over the steps t = 0 to T - 2, charged to the
    probe. The step selector's `eta` is the noise level.

    Args:
        images: Images per step and prompt, 2 or more.
        prompts: Prompts of the batch that are measured, the first of it; None for all.
        every_n_iterations: Iterations between two measurements; the first iteration has one.
        decay: Weight of a measurement after the next one, in [0, 1).

    Raises:
        ValueError: If a number is too small or `decay` lies outside [0, 1).
    """

    def __init__(
        self,
        images: int = 8,
        prompts: int | None = 4,
        every_n_iterations: int = 10,
        decay: float = 0.9,
    ) -> None:
        super().__init__(decay, revisit_every=None)
        if images < 2:
            raise ValueError(f"images={images} have no spread; use 2 or more per step and prompt")
        if every_n_iterations < 1 or (prompts is not None and prompts < 1):
            raise ValueError(
                f"every_n_iterations={every_n_iterations} and prompts={prompts} must be at least 1"
            )
        self.images, self.prompts = images, prompts
        self.every_n_iterations = every_n_iterations

    def planned_evaluations(self, run: RunShape) -> dict[str, Range]:
        """The trials of every measurement."""
        measurements = -(-run.iterations // self.every_n_iterations)
        prompts = run.batch_size if self.prompts is None else self.prompts
        steps = range(run.num_steps - 1)
        trials = sum(step + 1 + self.images * (run.num_steps - 1 - step) for step in steps)
        return {"probe": Range.exactly(measurements * prompts * trials)}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Measure if it is time to, and publish the curve."""
        iteration = pl_module.iteration
        known = bool(self._estimate(pl_module).known.any())
        if iteration % self.every_n_iterations == 0 or not known:
            # Hooks run outside the precision context that training_step has.
            with (
                pl_module.timer.measure("probe"),
                trainer.precision_plugin.forward_context(),
                pl_module.policy.together(),
            ):
                index, terms = self._measure(pl_module, batch)
            self._remember(pl_module, index, terms, iteration)
        self._publish(pl_module, len(batch))

    def _measure(self, pl_module: Training, batch: PromptBatch) -> tuple[Tensor, VarianceTerms]:
        """The dataset rows and the terms of this rank's share of the prompts."""
        count = len(batch) if self.prompts is None else self.prompts
        if count > len(batch):
            raise ValueError(
                f"TrialSpread has prompts={count}, but a batch has {len(batch)}; lower it, or use "
                "null for all prompts"
            )
        own = batch.select(own_rows(count))
        if len(own) == 0:
            nothing = torch.zeros(0, pl_module.num_steps, dtype=torch.float64, device="cpu")
            return own.index, VarianceTerms(nothing, nothing)
        # Not the training rollout's own noise: its steps must not be chosen by how it will fare.
        noise = pl_module.noise.at(pl_module.iteration).apart("trials")
        rewards = [
            single_step_groups(
                pl_module.policy,
                pl_module.sde,
                pl_module.reward,
                own,
                noise,
                step=step,
                num_steps=pl_module.num_steps,
                images=self.images,
                eta=pl_module.step_selector.eta,
                sampler=pl_module.sampler,
                purpose="probe",
            ).rewards
            for step in range(pl_module.num_steps - 1)
        ]
        return own.index, trial_variance(rewards)


class TreeSpread(StepSpread):
    """Reads the variance of each step off the trees that training draws anyway.

    It costs nothing. At each split the variance between siblings tells what the split's noise
    explains (`aegpo.study.split_variance`), together with the noisy steps up to the next split. A
    step that never split has no estimate and is put first, and one that has not split for
    `revisit_every` iterations is put first again, so the selector has to follow the curve:
    `EntropyPeaks` with `branching: 2`.

    Args:
        decay: Weight of an iteration after the next one, in [0, 1).
        revisit_every: Iterations after which a step that did not split is put first again.

    Raises:
        ValueError: If `decay` lies outside [0, 1) or `revisit_every` is below 1.
    """

    def __init__(self, decay: float = 0.9, revisit_every: int = 40) -> None:
        super().__init__(decay, revisit_every)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Publish the curve as it is known so far."""
        self._publish(pl_module, len(batch))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Read this iteration's trees.

        Args:
            trainer: The trainer.
            pl_module: The module.
            outputs: Not used.
            batch: The prompts of all ranks.
            batch_idx: Not used.

        Raises:
            ValueError: If no tree of the iteration has siblings to compare at all its steps.
        """
        last = pl_module.last
        branches = last.schedule.leaves_per_root > 1
        alone = last.schedule.stochastic.sum(dim=1) == 1
        readable = float((branches | (alone & pl_module.shared_start)).sum())
        if all_reduce_sum(readable, pl_module.device) == 0:
            raise ValueError(
                "TreeSpread compares siblings, but no rollout of this iteration split; give the "
                "step selector branching: 2 and the prompts an even number of images, or use "
                "TrialSpread on chains"
            )
        terms = split_variance(last.tree, last.rewards, len(last.batch))
        self._remember(pl_module, last.batch.index, terms, pl_module.iteration - 1)
