"""DecisionLog: why each prompt got its budget and each step its noise, for replaying offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.prompts import PromptBatch
from aegpo.study.decision_log import Decision, read_decisions
from aegpo.training import Iteration, Training
from aegpo.utilities.files import append_line, replacing


class DecisionLog(L.Callback):
    """Writes one line of JSON an iteration to `decisions.jsonl` in the log folder.

    A line holds the prompts' dataset rows and the chance with which they were drawn, their
    Entropy(t) and ΔEntropy, and what was decided from them: images per prompt, stochastic steps
    and branching, the images that were trained on where a selection chose them, and what a selector
    with a memory had measured. `aegpo replay` sets another allocator or selector against it. A
    resumed run cuts the log at its checkpoint and goes on.
    """

    def __init__(self) -> None:
        self._probabilities: Tensor | None = None
        self._measured: dict[str, list[float]] = {}
        self._path: Path | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Keep the lines of the iterations before the checkpoint, none in a new run."""
        self._path = None
        if not trainer.loggers:  # the same on every rank
            rank_zero_warn(
                "without a trainer.logger there is no log folder, and no decisions.jsonl"
            )
            return
        folder = trainer.log_dir  # a collective
        if not trainer.is_global_zero or folder is None:
            return
        self._path = Path(folder) / "decisions.jsonl"
        kept = read_decisions(self._path) if self._path.is_file() else []
        lines = [line.to_json() + "\n" for line in kept if line.iteration < pl_module.iteration]
        with replacing(self._path) as partial:
            partial.write_text("".join(lines))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Note the chances, and what was measured, while they are what is decided by."""
        state = pl_module.step_selector.state_dict()
        self._measured = {name: values.tolist() for name, values in state.items()}
        sampler = getattr(trainer.datamodule, "sampler", None)  # type: ignore[attr-defined]
        self._probabilities = None
        if sampler is not None:
            self._probabilities = sampler.probabilities()[batch.index.cpu()]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Collect the ranks' parts of the decision and write the line."""
        last = pl_module.last
        device = last.batch.index.device
        columns = [
            last.batch.index[:, None],
            last.group_sizes.to(device)[:, None],
            last.schedule.stochastic.to(device).long(),
            last.schedule.branching.to(device),
        ]
        rows = all_gather_rows(torch.cat(columns, dim=1))[0].cpu()
        kept = _kept(last)
        if self._path is None:
            return
        # A prompt occurs once in a batch, so its dataset row says where it stood.
        place = {int(row[0]): number for number, row in enumerate(rows)}
        rows = rows[[place[index] for index in batch.index.tolist()]]
        num_steps = last.schedule.num_steps
        decision = Decision(
            iteration=pl_module.iteration - 1,
            seed=pl_module.noise.seed,
            index=batch.index,
            num_steps=num_steps,
            entropy=pl_module.entropy,
            group_sizes=rows[:, 1],
            stochastic=rows[:, 2 : 2 + num_steps].bool(),
            branching=rows[:, 2 + num_steps :],
            probabilities=self._probabilities,
            kept=None if kept is None else [kept.get(one, []) for one in batch.index.tolist()],
            measured=self._measured or None,
        )
        append_line(self._path, decision.to_json())


def _kept(last: Iteration) -> dict[int, list[int]] | None:
    """Numbers of each prompt's images that were trained on, of all ranks; None if none was chosen.

    Every rank has to call it.
    """
    if last.weights is None:
        return None
    row = last.tree.row
    number = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    pairs = torch.stack([last.batch.index.to(row.device)[row], number], dim=1)
    kept: dict[int, list[int]] = {}
    for index, image in all_gather_rows(pairs[last.weights > 0])[0].tolist():
        kept.setdefault(index, []).append(image)
    return kept
