"""`aegpo signals`: draw prompts, measure them inside the trainer, print and write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch, category_of
from aegpo.samplers import sampler_name
from aegpo.sde import FlowSDE
from aegpo.study.signal_probe import SignalProbe
from aegpo.study.signal_report import (
    PROMPT_COLUMNS,
    STEP_COLUMNS,
    Report,
    make_report,
    write_report,
)
from aegpo.utilities.checkpoint_files import CheckpointFiles
from aegpo.utilities.folders import check_folder
from lightning_modules.commands.inside_trainer import inside_trainer
from lightning_modules.training.resuming import PREFIX, policy_tensors

NEEDED = ("policy_factory", "sde", "sampler", "reward", "step_selector", "noise", "num_steps")
PRINTED_ROWS = 12
"""Rows of each table that go to the terminal; the files have all of them."""
PRINTED_WIDTH = 118
"""Names of layers are there to be copied: a narrow terminal wraps lines instead of names."""


def signals(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    ckpt_before: str | None = None,
    prompts: int = 24,
    images: int = 8,
    trajectories: int = 8,
    rows: int | None = 64,
    top_k: int | None = None,
    agreement: bool = False,
    out: str = "runs/signals",
) -> Report:
    """Measure what attention entropy predicts, before a training run is spent on it.

    Args:
        trainer: A trainer of one process.
        model: The configured module.
        datamodule: The configured data.
        ckpt_path: Checkpoint of the policy to look at; the base without it.
        weights_only: Whether to load that checkpoint without unpickling objects.
        ckpt_before: Earlier checkpoint of the same run, from which reward gained is counted;
            the base without it.
        prompts: Training prompts to draw, evenly from the categories.
        images: Images in a group.
        trajectories: Trajectories per prompt for entropy, an even number.
        rows: Query rows sampled per head, or null for all of them (exact).
        top_k: Steps that every reading chooses; the selector's own number by default, else 4.
        agreement: Whether the first table also gets a row for the agreement of half-batch
            gradients, for three evaluations an image and step.
        out: Folder for the tables as Markdown, CSV and JSON.

    Returns:
        What was written.

    Raises:
        ValueError: If the module has no policy, SDE, reward and selector, there are no prompts,
            `ckpt_before` stands alone, or `out` is a file.
    """
    module: Any = model
    missing = [name for name in NEEDED if not hasattr(model, name)]
    if missing or datamodule is None:
        raise ValueError(
            f"aegpo signals needs a module with policy, sde, reward and step_selector, and data; "
            f"{type(model).__name__} lacks {', '.join(missing) or 'only the data'}"
        )
    if ckpt_before is not None and ckpt_path is None:
        raise ValueError("--ckpt_before is the earlier of two checkpoints; give --ckpt_path too")
    folder = check_folder(out)
    module.warmup = None  # its steps are soon left, and never chosen among
    earlier = None if ckpt_before is None else _trainable_state(ckpt_before)
    if top_k is None:
        top_k = getattr(module.step_selector, "top_k", min(4, module.num_steps - 1))
    sde = module.sde
    if sde.eta_range[1] <= 0:  # a method that learns from images alone tries no step by itself
        sde = FlowSDE()
    batch = _draw_prompts(datamodule, prompts, module)
    started = time.perf_counter()
    console = Console(width=max(Console().width, PRINTED_WIDTH), markup=False)
    reports: list[Report] = []

    def measure(batch: PromptBatch) -> None:
        with console.status("measuring") as status:
            probe = SignalProbe(
                module.policy,
                sde,
                module.reward,
                module.step_selector,
                batch,
                module.noise,
                module.num_steps,
                images=images,
                trajectories=trajectories,
                rows=rows,
                shared_start=module.shared_start,
                split_scale=module.split_scale,
                sampler=module.sampler,
                agreement=agreement,
                say=status.update,
            )
            measured = probe.measure(ckpt_path is not None, earlier)
        settings = {
            "reward": module.reward.name,
            "prompts": len(batch),
            "images": images,
            "trajectories": trajectories,
            "steps": module.num_steps,
            "steps without noise": sampler_name(module.sampler),
            "top-K": top_k,
            "checkpoint": ckpt_path or "none (the base)",
        }
        if sde is not module.sde:
            own, eta = type(module.sde).__name__, module.step_selector.eta
            settings["steps with noise"] = (
                f"{type(sde).__name__} at eta {eta:g}; the config's {own} draws none, so what is "
                "found is not about this config, but about methods that explore"
            )
            console.print("steps with noise: " + settings["steps with noise"])
        if ckpt_before is not None:
            settings["before"] = ckpt_before
        reports.append(make_report(measured, top_k, settings))

    inside_trainer(trainer, model, batch, measure, ckpt_path, weights_only, agreement)
    report = reports[0]
    files = write_report(report, folder)
    print_report(report, console)
    console.print(f"{report.cost} in {time.perf_counter() - started:.0f} seconds")
    console.print("written: " + ", ".join(map(str, files)))
    return report


def print_report(report: Report, console: Console) -> None:
    """Print the top of both tables.

    Args:
        report: The tables.
        console: Where to.
    """
    steps = report.steps
    title = "reward spread inside a group when only one step is stochastic"
    spread = Table(title=title, box=SIMPLE_HEAD)
    for column in ("step", *map(str, range(len(steps.spread)))):
        spread.add_column(column, justify="right")
    spread.add_row("spread", *(f"{value:.3f}" for value in steps.spread))
    spread.add_row("variance", *(f"{value:.0%}" for value in steps.variance_share))
    console.print(spread)
    rows = [row[: len(STEP_COLUMNS)] for row in report.step_rows()]
    _print_table(console, "Entropy(t) beside it", list(STEP_COLUMNS), rows, report.step_notes)
    columns = [PROMPT_COLUMNS[name] for name in report.prompt_fields()]
    title = "ΔEntropy beside what there is to learn"
    _print_table(console, title, columns, report.prompt_rows(), report.prompt_notes)


def _print_table(
    console: Console, title: str, columns: list[str], rows: list[list[str]], notes: list[str]
) -> None:
    if rows:
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, column in enumerate(columns):
            name = number < 2
            table.add_column(column, justify="left" if name else "right", no_wrap=name)
        # The mean over all layers is what is recorded by default: it is shown wherever it ranks.
        shown = [row for place, row in enumerate(rows) if place < PRINTED_ROWS or row[1] == "all"]
        for row in shown:
            table.add_row(*row)
        console.print(table)
        if len(shown) < len(rows):
            console.print(f"{len(rows) - len(shown)} more rows in the files")
    for note in notes:
        console.print(note)


def choose_prompts(categories: Sequence[str], count: int, noise: KeyedNoise) -> list[int]:
    """Draw different rows, as many of each category as there are.

    Args:
        categories: Category of every row.
        count: Rows wanted; all of them if there are fewer.
        noise: Where the draw comes from.

    Returns:
        At most `count` row numbers, in rising order.
    """
    members: dict[str, list[int]] = {}
    for row in noise.permutation("signals", [0], len(categories)).tolist():
        members.setdefault(categories[row], []).append(row)
    turns = max((len(rows) for rows in members.values()), default=0)
    order = [
        members[name][turn]
        for turn in range(turns)
        for name in sorted(members)
        if turn < len(members[name])
    ]
    return sorted(order[:count])


def _draw_prompts(datamodule: LightningDataModule, count: int, module: Any) -> PromptBatch:
    datamodule.prepare_data()
    datamodule.setup("fit")
    dataset: Any = datamodule.train_dataloader().dataset
    items = [dataset[row] for row in range(len(dataset))]
    categories = [category_of(item["metadata"]) for item in items]
    return PromptBatch.collate(
        [items[row] for row in choose_prompts(categories, count, module.noise)]
    )


def _trainable_state(path: str) -> dict[str, torch.Tensor]:
    """Read the policy's tensors of a checkpoint that `PolicyModule` wrote."""
    saved = CheckpointFiles().load_checkpoint(path).get("state_dict", {})
    state = policy_tensors({name: saved[name] for name in saved if name.startswith(PREFIX)})
    if not state:
        raise ValueError(f"{path} holds no weights of a policy; give a checkpoint of `aegpo fit`")
    return state
