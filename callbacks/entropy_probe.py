"""EntropyProbe: reads the attention entropy of the next batch and publishes it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows, world
from aegpo.entropy.reading import EntropyReading, delta_entropy
from aegpo.entropy.recorder import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rollout import rollout
from aegpo.sde import ODE


class EntropyProbe(L.Callback):
    """Measures Entropy(t) and ΔEntropy of every batch before its rollout.

    A few deterministic trajectories per prompt are drawn from noise that is fixed for the prompt,
    once under the policy and, at a prompt's first visit only, once under the reference. The
    reading goes to `pl_module.entropy`, where the step selector and the allocator find it.
    Without this callback training is the uniform baseline.

    Args:
        recorder: How entropy is measured: layers, token set, sampled rows.
        trajectories: Trajectories per prompt that are averaged. ΔEntropy from one of them is
            mostly noise, from eight it is repeatable; each costs T evaluations.
        every_n_iterations: Iterations between two readings. In between the reading of a prompt's
            last visit is published, or the running mean for prompts that were never read.

    Raises:
        ValueError: If a count is below one.
    """

    def __init__(
        self,
        recorder: EntropyRecorder | None = None,
        trajectories: int = 1,
        every_n_iterations: int = 1,
    ) -> None:
        if trajectories < 1 or every_n_iterations < 1:
            raise ValueError(
                f"trajectories={trajectories} and every_n_iterations={every_n_iterations} must "
                "both be at least 1"
            )
        self.recorder = recorder or EntropyRecorder()
        self.trajectories, self.every_n_iterations = trajectories, every_n_iterations
        self.reference: dict[int, Tensor] = {}
        self.last: dict[int, tuple[Tensor, Tensor]] = {}
        self.first_curve: Tensor | None = None
        self.reference_curve: Tensor | None = None
        self.per_layer: Tensor | None = None
        self.layer_names: list[str] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Publish the reading of this batch."""
        with pl_module.timer.measure("probe"):
            if pl_module.iteration % self.every_n_iterations == 0:
                self._measure(trainer, pl_module, batch)
            pl_module.entropy = self._reading(batch)

    def _measure(self, trainer: L.Trainer, pl_module: Any, batch: PromptBatch) -> None:
        policy: Policy = pl_module.policy
        size, rank = world()
        own = torch.arange(rank, len(batch), size)
        # Hooks run outside the precision context that training_step has.
        with trainer.precision_plugin.forward_context():
            curves = self._trajectories(pl_module, batch.select(own), "probe")
            new = torch.tensor([row for row in own if int(batch.index[row]) not in self.reference])
            with policy.reference():
                references = self._trajectories(pl_module, batch.select(new), "reference")
        for index, curve in self._gather(batch.index[new.long()], references):
            self.reference[index] = curve
        for index, curve in self._gather(batch.index[own], curves):
            delta = delta_entropy(curve[None], self.reference[index][None])[0]
            self.last[index] = curve, delta
        visited = batch.index.tolist()
        mean = torch.stack([self.last[index][0] for index in visited]).mean(0)
        self.first_curve = mean if self.first_curve is None else self.first_curve
        self.reference_curve = torch.stack([self.reference[index] for index in visited]).mean(0)

    def _trajectories(self, pl_module: Any, batch: PromptBatch, purpose: str) -> Tensor:
        """Entropy(t) of each prompt, shape (n, T) on the CPU."""
        policy: Policy = pl_module.policy
        if len(batch) == 0:
            return torch.empty(0, pl_module.num_steps)
        cond = policy.encode(batch.prompts)
        schedule = ExplorationSchedule.deterministic(len(batch), pl_module.num_steps)
        sizes = torch.full((len(batch),), self.trajectories)
        with self.recorder.record(policy) as recording, policy.evaluations.charge(purpose):
            rollout(
                policy,
                ODE(),
                cond,
                schedule,
                sizes,
                pl_module.noise.fixed(),
                batch.index,
                decode=False,
                observer=recording,
            )
        if purpose == "probe":
            self.per_layer, self.layer_names = recording.per_layer().cpu(), recording.layer_names
        return recording.curve().cpu()

    @staticmethod
    def _gather(index: Tensor, curves: Tensor) -> list[tuple[int, Tensor]]:
        """Pairs of dataset row and curve from all ranks."""
        rows, _ = all_gather_rows(torch.cat([index.double()[:, None], curves.double()], dim=1))
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
            "reference_index": torch.tensor(list(self.reference), dtype=torch.int64),
            "last_index": torch.tensor(list(self.last), dtype=torch.int64),
        }
        if self.last:
            state["reference"] = torch.stack(list(self.reference.values()))
            state["last_curve"] = torch.stack([curve for curve, _ in self.last.values()])
            state["last_delta"] = torch.stack([delta for _, delta in self.last.values()])
            state["first_curve"], state["reference_curve"] = self.first_curve, self.reference_curve
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        if "reference" not in state_dict:
            return
        keys = state_dict["reference_index"].tolist()
        self.reference = dict(zip(keys, state_dict["reference"], strict=True))
        readings = zip(state_dict["last_curve"], state_dict["last_delta"], strict=True)
        self.last = dict(zip(state_dict["last_index"].tolist(), readings, strict=True))
        self.first_curve = state_dict["first_curve"]
        self.reference_curve = state_dict["reference_curve"]
