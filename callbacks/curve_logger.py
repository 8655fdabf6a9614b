"""CurveLogger: entropy curves, budgets and sampler weights, drawn for the loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.entropy import EntropyReading
from aegpo.prompts import PromptBatch
from aegpo.training import Training
from aegpo.utilities.checks import require_positive
from aegpo.utilities.tables import markdown_table
from callbacks.pictures import Pictures
from callbacks.prompt_budgets import HEADER, PromptBudgets
from callbacks.tensorboard import tensorboard_writers


class CurveLogger(L.Callback):
    """Draws what the entropy loops see and do.

    Tags: `entropy/curve` (Entropy(t) now, at the start, of the reference, and the steps that
    explore), `entropy/by_layer` (layer by step), `entropy/delta` (histogram), `entropy/prompts`
    (table of the batch), `steps/agreement` and `levels/agreement` (tables of what half batches
    agree on), `allocation/images` (histogram of images per prompt), `allocation/prompts` (table:
    latest ΔEntropy, visits and images of the prompts visited so far, those with the highest and the
    lowest) and `sampler/weights` (histogram).

    Args:
        every_n_iterations: Iterations between two drawings.

    Raises:
        ValueError: If `every_n_iterations` is below one.
    """

    def __init__(self, every_n_iterations: int = 10) -> None:
        require_positive("every_n_iterations", every_n_iterations)
        self.every_n_iterations = every_n_iterations
        self._pictures, self._budgets = Pictures(), PromptBudgets()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Draw every few iterations, and log the numbers of the curve every time."""
        entropy, last = pl_module.entropy, pl_module.last
        explored, _ = all_gather_rows(last.schedule.stochastic.float())  # every rank has its own
        sizes = self._enter(pl_module, batch)
        pl_module.log("rollout/stochastic_share", float(explored.mean()), rank_zero_only=True)
        if entropy is not None:
            pl_module.log("entropy/mean", float(entropy.curve.mean()), rank_zero_only=True)
            if entropy.delta is not None:
                pl_module.log(
                    "entropy/delta_mean", float(entropy.delta.mean()), rank_zero_only=True
                )
        if (pl_module.iteration - 1) % self.every_n_iterations == 0 and trainer.is_global_zero:
            self._histograms(trainer, pl_module, sizes)
            self._table_of_prompts(trainer, pl_module.iteration)
            if entropy is not None:
                self._draw(trainer, pl_module, batch, explored.mean(0), entropy)

    def _enter(self, pl_module: Training, batch: PromptBatch) -> Tensor:
        """Note who got how many images; the numbers of all ranks, a collective."""
        last, entropy = pl_module.last, pl_module.entropy
        device = last.batch.index.device
        own = torch.stack([last.batch.index, last.group_sizes.to(device)], dim=1)
        gathered, _ = all_gather_rows(own)
        images = {row: size for row, size in gathered.tolist()}
        self._budgets.add(batch, images, None if entropy is None else entropy.delta)
        return gathered[:, 1]

    def _table_of_prompts(self, trainer: L.Trainer, iteration: int) -> None:
        prompts = getattr(trainer.datamodule, "train_prompts", None)  # type: ignore[attr-defined]
        if self._budgets.says_something():
            rows = self._budgets.table(getattr(prompts, "records", []))
            self._pictures.table(trainer, "allocation/prompts", HEADER, rows, iteration)

    def on_train_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Write the table of prompts as it is in the end."""
        if (pl_module.iteration - 1) % self.every_n_iterations != 0:
            self._table_of_prompts(trainer, pl_module.iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return what each prompt was drawn for."""
        return self._budgets.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; checkpoints had none before."""
        if state_dict:
            self._budgets.load_state_dict(state_dict)

    def _histograms(self, trainer: L.Trainer, pl_module: Training, sizes: Tensor) -> None:
        """What TensorBoard alone gets: histograms, and the table of agreements."""
        sampler = getattr(trainer.datamodule, "sampler", None)  # type: ignore[attr-defined]
        entropy, step = pl_module.entropy, pl_module.iteration
        for writer in tensorboard_writers(trainer):
            writer.add_histogram("allocation/images", sizes, step)
            for tag in ("steps", "levels"):
                if table := agreement_table(tag, trainer.callback_metrics):
                    writer.add_text(f"{tag}/agreement", table, step)
            if sampler is not None:
                writer.add_histogram("sampler/weights", sampler.probabilities(), step)
            if entropy is not None and entropy.delta is not None:
                writer.add_histogram("entropy/delta", entropy.delta, step)

    def _draw(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        batch: PromptBatch,
        explored: Tensor,
        entropy: EntropyReading,
    ) -> None:
        step, pictures = pl_module.iteration, self._pictures
        probe = next(
            (c for c in trainer.callbacks if hasattr(c, "reference_curve")),  # type: ignore[attr-defined]
            None,
        )
        curves = {"now": entropy.curve.mean(0)}
        if probe is not None and probe.first_curve is not None:
            curves |= {"at the start": probe.first_curve, "reference": probe.reference_curve}
        pictures.figure(trainer, "entropy/curve", curve_figure(curves, explored), step)
        if probe is not None and probe.per_layer is not None:
            figure = layer_figure(probe.per_layer, probe.layer_names)
            pictures.figure(trainer, "entropy/by_layer", figure, step)
        if entropy.delta is not None:
            rows = prompt_rows(batch, entropy.delta)
            pictures.table(trainer, "entropy/prompts", ("prompt", "ΔEntropy"), rows, step)


def agreement_table(tag: str, metrics: Mapping[str, Tensor]) -> str:
    """What half batches were found to agree on, as a Markdown table.

    Args:
        tag: "steps" or "levels", of which `<tag>/agreement_<number>` and `<tag>/share_<number>`
            were logged.
        metrics: The latest value of every tag.

    Returns:
        A row for each step or part; empty where neither was logged.
    """
    rows: list[list[str]] = []
    while (found := metrics.get(f"{tag}/agreement_{len(rows)}")) is not None:
        share = metrics[f"{tag}/share_{len(rows)}"]
        rows.append([str(len(rows)), f"{float(found):.3f}", f"{float(share):.3f}"])
    name = "step" if tag == "steps" else "part of the schedule"
    return markdown_table([name, "agreement", "share"], rows) if rows else ""


def curve_figure(curves: dict[str, Tensor], explored: Tensor) -> Figure:
    """Draw Entropy(t) over the denoising steps.

    Args:
        curves: Name and Entropy(t) of each line, shape (T,).
        explored: Share of the prompts that explore at each step, in [0, 1], shape (T,).

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = range(len(explored))
    for (name, curve), style in zip(curves.items(), ("-o", "--", ":"), strict=False):
        axes.plot(steps, curve.tolist(), style, label=name)
    right = axes.twinx()
    right.bar(steps, explored.tolist(), color="tab:orange", alpha=0.25, label="explores")
    right.set_ylim(0, 1)
    right.set_ylabel("share of prompts that explore")
    axes.set_xlabel("denoising step (0 = pure noise)")
    axes.set_ylabel("attention entropy")
    axes.legend(loc="best")
    return figure


def layer_figure(per_layer: Tensor, names: list[str]) -> Figure:
    """Draw a heat map of attention entropy, layers (L) by denoising steps (T)."""
    figure = Figure(figsize=(6, 1.5 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(per_layer.numpy(), aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("denoising step (0 = pure noise)")
    figure.colorbar(image, label="attention entropy")
    return figure


def prompt_rows(batch: PromptBatch, delta: Tensor) -> list[tuple[str, str]]:
    """Return the batch's prompts with their ΔEntropy, highest first."""
    order = torch.argsort(delta, descending=True).tolist()
    return [(batch.prompts[row], f"{float(delta[row]):.5f}") for row in order]
