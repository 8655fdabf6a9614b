"""EntropyProbe: reads the attention entropy of every batch and publishes it."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from aegpo.distributed import all_gather_rows, is_sharded, own_rows
from aegpo.entropy.reading import EntropyReading, delta_entropy
from aegpo.entropy.recorder import EntropyRecorder
from aegpo.entropy.recording import Recording
from aegpo.exploration import ExplorationSchedule
from aegpo.planning.counts import PlansEvaluations, Range, RunShape
from aegpo.prompts import PromptBatch
from aegpo.prompts.known_texts import KnownTexts
from aegpo.rollout import rollout
from aegpo.samplers import EULER, sampler_name
from aegpo.sde import ODE, SDE
from aegpo.training import Training
from callbacks.reference_cache import ReferenceCache


class EntropyProbe(L.Callback, PlansEvaluations):
    """Measures Entropy(t) and ΔEntropy of every batch.

    The reading goes to `pl_module.entropy`, where the step selector and the allocator find it.
    Without this callback training is the uniform baseline.

    By default a few deterministic trajectories per prompt are drawn before the rollout, from noise
    that is fixed for the prompt, once under the policy and, at a prompt's first visit only, once
    under the reference.

    With `source: rollouts` the policy's entropy is that of the images that are drawn anyway, the
    mean over a prompt's images, at no further evaluation. It is known after the rollout, so what
    is published is the reading of a prompt's last visit, for the prompt sampler too; a prompt that
    was never visited gets the running mean. Such a curve depends on the schedule: each stochastic
    step changes what the steps behind it see. The reference is therefore drawn with the same SDE
    and the steps that the prompt's first visit explored at; with another schedule at a later visit
    their difference is part of ΔEntropy. Its noise is fixed for the prompt and never that of a
    rollout, so the sampling error, which absolute differences add up, is alike at every visit.

    Args:
        recorder: How entropy is measured: layers, token set, sampled rows.
        trajectories: Trajectories per prompt that are averaged. ΔEntropy from one of them is
            mostly noise, from eight it is repeatable; each costs T evaluations. With
            `source: rollouts` they are the reference's.
        every_n_iterations: Iterations between two readings. In between the reading of a prompt's
            last visit is published, or the running mean for prompts that were never read.
        source: "trajectory" or "rollouts": where the policy's entropy is read; where the policy has
            buckets the first alone, in the first of them, as readings have to be of one size.
        reference_cache: Folder where the reference's curves are kept for later runs of the same
            model, prompt, noise and schedule, which read them at no evaluation; null for none,
            as where methods are compared at equal evaluations.

    Raises:
        ValueError: If a count is below one or `source` is unknown.
    """

    publishes = ("curve", "delta")

    def __init__(
        self,
        recorder: EntropyRecorder | None = None,
        trajectories: int = 1,
        every_n_iterations: int = 1,
        source: Literal["trajectory", "rollouts"] = "trajectory",
        reference_cache: str | None = None,
    ) -> None:
        if trajectories < 1 or every_n_iterations < 1:
            raise ValueError(
                f"trajectories={trajectories} and every_n_iterations={every_n_iterations} must "
                "both be at least 1"
            )
        if source not in ("trajectory", "rollouts"):
            raise ValueError(f"source={source!r} is unknown; use 'trajectory' or 'rollouts'")
        self.recorder = recorder or EntropyRecorder()
        self.trajectories, self.every_n_iterations = trajectories, every_n_iterations
        self.source, self.reference_cache = source, reference_cache
        self._cache: ReferenceCache | None = None
        self.reference: dict[int, Tensor] = {}
        self.texts = KnownTexts()
        self.last: dict[int, tuple[Tensor, Tensor]] = {}
        self.first_curve: Tensor | None = None
        self.reference_curve: Tensor | None = None
        self.per_layer: Tensor | None = None
        self.layer_names: list[str] = []
        self.sampler: str | None = None
        self._said = False

    def planned_evaluations(self, run: RunShape) -> dict[str, Range]:
        """Trajectories of every reading, and the reference's of every prompt that is ever read.

        How many different prompts that are depends on the sampler: at least one batch, and each
        prompt at most once.
        """
        readings = -(-run.iterations // self.every_n_iterations)
        visits = readings * run.batch_size
        known = visits if run.num_prompts is None else min(visits, run.num_prompts)
        prompt = self.trajectories * run.num_steps
        fewest = min(run.batch_size, known) if self.reference_cache is None else 0
        planned = {"reference": Range(fewest, known) * prompt}
        if self.source == "trajectory":
            planned["probe"] = Range.exactly(visits * prompt)
        return planned

    def scored_rows(self, num_queries: int) -> int:
        """The sampled rows, or all of them."""
        return min(self.recorder.rows or num_queries, num_queries)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Publish the reading of this batch."""
        if self.source == "rollouts" and pl_module.policy.buckets:
            sizes = ", ".join(map(str, pl_module.policy.buckets))
            given = f"EntropyProbe: source=rollouts compares images of one size, not of {sizes}"
            raise ValueError(f"{given}; use source=trajectory, or give the policy one resolution")
        self._forget(batch, pl_module.num_steps, sampler_name(pl_module.sampler))
        due = pl_module.iteration % self.every_n_iterations == 0
        with pl_module.timer.measure("probe"):
            if self.source == "rollouts":
                pl_module.recorder = self.recorder if due else None
            elif due:
                own = batch.select(own_rows(len(batch)))
                schedule = ExplorationSchedule.deterministic(len(own), pl_module.num_steps)
                # Hooks run outside the precision context that training_step has.
                with trainer.precision_plugin.forward_context():
                    with pl_module.policy.together():
                        recording = self._draw(pl_module, own, ODE(), schedule, "probe")
                    self._keep(pl_module, batch, own, recording, ODE(), schedule)
            pl_module.entropy = self._reading(batch)

    def _forget(self, batch: PromptBatch, num_steps: int, sampler: str) -> None:
        """Drop what was read of other prompts at the same indices, or at other steps."""
        for index in self.texts.replaced(batch):
            self.reference.pop(index, None)
            self.last.pop(index, None)
        steps = {len(curve) for curve in self.reference.values()}
        before, self.sampler = self.sampler or sampler, sampler
        was, now = f"{min(steps, default=0)} steps", f"model.num_steps={num_steps}"
        if before != sampler:
            was, now = f"{was} by {before}", f"{now} and model.sampler={sampler}"
        if steps - {num_steps} or (steps and before != sampler):
            rank_zero_info(
                f"EntropyProbe: the readings so far are of {was}, the rollouts now of {now}; "
                "they are dropped, and taken anew"
            )
            self.reference.clear()
            self.last.clear()
            self.first_curve = self.reference_curve = None

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Keep what the rollout of this batch showed, for the prompts' next visit."""
        if self.source != "rollouts" or pl_module.recording is None:
            return
        last, sampler = pl_module.last, sampler_name(pl_module.sampler)
        if (last.schedule.num_steps, self.sampler) != (pl_module.num_steps, sampler):
            return  # a warm-up has ended, whose steps are not those of the next decision
        with pl_module.timer.measure("probe"), trainer.precision_plugin.forward_context():
            # Paths of a tree are distributed as chains are, and chains fit any number of them.
            single = torch.ones_like(last.schedule.branching)
            chains = ExplorationSchedule(last.schedule.eta, single)
            self._keep(pl_module, batch, last.batch, pl_module.recording, pl_module.sde, chains)

    def _keep(
        self,
        pl_module: Training,
        batch: PromptBatch,
        own: PromptBatch,
        recording: Recording,
        sde: SDE,
        schedule: ExplorationSchedule,
    ) -> None:
        """Set the curves of this rank's prompts against the reference, and share both."""
        curves = torch.empty(0, pl_module.num_steps, device="cpu")  # a rank may have no prompt
        if len(own) > 0:
            if not self._said and self.recorder.cost_bound is not None:
                rank_zero_info(f"EntropyProbe: reads {self.recorder.affordable}")
                self._said = True
            self.per_layer, self.layer_names = recording.per_layer(), recording.layer_names
            curves = recording.curve()
        known = [index in self.reference for index in own.index.tolist()]
        new = torch.tensor(
            [row for row, seen in enumerate(known) if not seen], dtype=torch.int64, device="cpu"
        )
        references = torch.empty(0, pl_module.num_steps, device="cpu")
        with pl_module.policy.together():
            if len(new) > 0:
                with pl_module.policy.reference():
                    references = self._references(
                        pl_module, own.select(new), sde, schedule.select(new)
                    )
        for index, curve in self._gather(own.index[new], references):
            self.reference[index] = curve
        for index, curve in self._gather(own.index, curves):
            delta = delta_entropy(curve[None], self.reference[index][None])[0]
            self.last[index] = curve, delta
        visited = batch.index.tolist()
        mean = torch.stack([self.last[index][0] for index in visited]).mean(0)
        self.first_curve = mean if self.first_curve is None else self.first_curve
        self.reference_curve = torch.stack([self.reference[index] for index in visited]).mean(0)

    def _references(
        self, pl_module: Training, batch: PromptBatch, sde: SDE, schedule: ExplorationSchedule
    ) -> Tensor:
        """Curves of the reference, inside it: (n, T) for n prompts; earlier runs' are read."""

        def draw(prompts: PromptBatch, steps: ExplorationSchedule) -> Tensor:
            return self._draw(pl_module, prompts, sde, steps, "reference").curve()

        if self.reference_cache is None or is_sharded(pl_module.policy.denoiser):
            return draw(batch, schedule)
        if self._cache is None:
            self._cache = ReferenceCache(self.reference_cache, self.recorder, self.trajectories)
        return self._cache.curves(pl_module, batch, sde, schedule, draw)

    def _draw(
        self,
        pl_module: Training,
        batch: PromptBatch,
        sde: SDE,
        schedule: ExplorationSchedule,
        purpose: str,
    ) -> Recording:
        """Record `trajectories` of each prompt, from noise that is fixed for the prompt."""
        policy = pl_module.policy
        sizes = torch.full((len(batch),), self.trajectories, device="cpu")
        noise = pl_module.noise.fixed()
        cond = policy.encode(batch.prompts)
        with self.recorder.record(policy) as recording, policy.evaluations.charge(purpose):
            rollout(
                policy,
                sde,
                cond,
                schedule,
                sizes,
                noise,
                batch.index,
                sampler=pl_module.sampler,
                decode=False,
                observer=recording,
            )
        return recording

    @staticmethod
    def _gather(index: Tensor, curves: Tensor) -> list[tuple[int, Tensor]]:
        """Pairs of dataset row and curve from all ranks."""
        rows, _ = all_gather_rows(
            torch.cat([index.cpu().double()[:, None], curves.double()], dim=1)
        )
        return [(int(row[0]), row[1:].float()) for row in rows]

    def _reading(self, batch: PromptBatch) -> EntropyReading | None:
        if not self.last:
            return None
        mean_curve = torch.stack([curve for curve, _ in self.last.values()]).mean(0)
        mean_delta = torch.stack([delta for _, delta in self.last.values()]).mean()
        known = [self.last.get(index, (mean_curve, mean_delta)) for index in batch.index.tolist()]
        return EntropyReading(
            torch.stack([curve for curve, _ in known]), torch.stack([delta for _, delta in known])
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the reference entropies and the last readings, so that nothing is read twice."""
        state: dict[str, Any] = {
            "reference_index": torch.tensor(list(self.reference), dtype=torch.int64, device="cpu"),
            "last_index": torch.tensor(list(self.last), dtype=torch.int64, device="cpu"),
            "texts": self.texts.state_dict(),
            "sampler": self.sampler or EULER,
        }
        if self.last:
            state["reference"] = torch.stack(list(self.reference.values()))
            state["last_curve"] = torch.stack([curve for curve, _ in self.last.values()])
            state["last_delta"] = torch.stack([delta for _, delta in self.last.values()])
            state["first_curve"], state["reference_curve"] = self.first_curve, self.reference_curve
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.texts.load_state_dict(state_dict["texts"])
        self.sampler = state_dict.get("sampler", EULER)
        if "reference" not in state_dict:
            return
        keys = state_dict["reference_index"].tolist()
        self.reference = dict(zip(keys, state_dict["reference"], strict=True))
        readings = zip(state_dict["last_curve"], state_dict["last_delta"], strict=True)
        self.last = dict(zip(state_dict["last_index"].tolist(), readings, strict=True))
        self.first_curve = state_dict["first_curve"]
        self.reference_curve = state_dict["reference_curve"]
