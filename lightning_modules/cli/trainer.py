"""The Trainer behind the command line: Lightning's, plus one method for each command of ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console

from lightning_modules.commands.doctor.doctor import run_preflight
from lightning_modules.commands.export.export import run_export
from lightning_modules.commands.export.run_record import RunRecord
from lightning_modules.commands.inside_trainer import Weights
from lightning_modules.commands.plan.page import page
from lightning_modules.commands.plan.plan import make_plan
from lightning_modules.commands.sample import run_sample
from lightning_modules.commands.signals import run_signals


class AEGPOTrainer(Trainer):
    """A Trainer whose extra methods are extra subcommands.

    A new subcommand is a method here, its name in ``AEGPOCLI.subcommands`` and a line in
    ``entry.COMMANDS``. Each takes ``ckpt_path`` and ``weights_only``, because the config that a
    run of ``fit`` saves contains both and is to be accepted by every command.

    Args:
        callbacks: As for Lightning's Trainer.
        without_callbacks: Class names of callbacks that are left out of the list, so that an
            overlay can take some away from whatever config it is laid over.
        **settings: All other arguments of Lightning's Trainer.
    """

    def __init__(
        self,
        *,
        callbacks: list[Callback] | Callback | None = None,
        without_callbacks: list[str] | None = None,
        **settings: Any,
    ) -> None:
        listed = [callbacks] if isinstance(callbacks, Callback) else callbacks or []
        super().__init__(callbacks=_left_in(listed, without_callbacks or []), **settings)

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> bool:
        """Check the first update of a config on one small rollout: ratio 1, finite gradient.

        Args:
            model: The configured module.
            datamodule: The configured data.
            ckpt_path: Checkpoint to start from instead of the base model.
            weights_only: Whether to load that checkpoint without unpickling objects.

        Returns:
            Whether nothing failed.
        """
        return run_preflight(self, model, datamodule, ckpt_path, weights_only)

    def plan(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        processes: int | None = None,
        rate: float | None = None,
        measured: str | None = None,
    ) -> None:
        """Say what a run will do and cost, without loading a model or writing anything.

        Args:
            model: The configured module.
            datamodule: The configured data.
            ckpt_path: Accepted and not read: the plan is that of a run from its start.
            weights_only: Accepted and not used, as no checkpoint is read.
            processes: Processes (GPUs) that share the prompts; those of the config by default.
            rate: Model evaluations per second, all processes together, for the time.
            measured: Log folder of a finished run, TensorBoard or CSV, to read that rate from.
        """
        count = self.world_size if processes is None else processes
        Console().print(page(make_plan(self, model, datamodule, count, rate, measured)))

    def signals(
        self,
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
        out: str = "runs/signals",
    ) -> None:
        """Measure what attention entropy predicts, before a training run is spent on it.

        Args:
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
            out: Folder for the tables as Markdown, CSV and JSON.
        """
        run_signals(
            self,
            model,
            datamodule,
            ckpt_path,
            weights_only,
            ckpt_before,
            prompts=prompts,
            images=images,
            trajectories=trajectories,
            rows=rows,
            top_k=top_k,
            out=out,
        )

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        *,
        out: str,
        weights: Weights = "ema",
        prompts: list[str] | None = None,
        run: RunRecord | None = None,
    ) -> None:
        """Write what was trained for diffusers, checked against diffusers, with a model card.

        Args:
            model: The configured module.
            datamodule: Not used.
            ckpt_path: Checkpoint to export: a file, or last for the run's last one.
            weights_only: Whether to load that checkpoint without unpickling objects.
            out: Folder to write, new or empty.
            weights: The averaged weights, if the run kept an average, or the last ones.
            prompts: Texts to draw for the comparison and the card; the run's first held-out
                prompts by default.
            run: Config and logs, for the model card.
        """
        run = run or RunRecord()
        run_export(self, model, ckpt_path, weights_only, weights, out, prompts, run)

    def sample(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        *,
        out: str,
        weights: Weights = "ema",
        prompts: list[str] | None = None,
        prompt_file: str | None = None,
        images_per_prompt: int = 4,
        num_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        """Draw prompts from a checkpoint beside the base, with the scores of all rewards.

        Args:
            model: The configured module.
            datamodule: Not used.
            ckpt_path: Checkpoint to draw from: a file, or last for the run's last one; the base
                alone without it.
            weights_only: Whether to load that checkpoint without unpickling objects.
            out: Folder of the pictures, new or empty.
            weights: The averaged weights, if the run kept an average, or the last ones.
            prompts: Texts to draw.
            prompt_file: A .txt, .jsonl or .csv file of prompts instead, or a bundled
                split, such as shapes:heldout.
            images_per_prompt: Images per prompt.
            num_steps: Denoising steps; the config's by default.
            seed: Of the noise that the images start from.
        """
        run_sample(
            self,
            model,
            ckpt_path,
            weights_only,
            weights=weights,
            prompts=prompts,
            prompt_file=prompt_file,
            images_per_prompt=images_per_prompt,
            num_steps=num_steps,
            seed=seed,
            out=out,
        )


def _left_in(callbacks: Sequence[Callback], without: Sequence[str]) -> list[Callback]:
    """The callbacks whose class is not named; a name that none of them has costs a warning."""
    present = [type(callback).__name__ for callback in callbacks]
    missing = [name for name in without if name not in present]
    if missing and callbacks:
        warnings.warn(
            f"trainer.without_callbacks names {', '.join(missing)}, which is not among the "
            f"callbacks: {', '.join(present)}",
            stacklevel=3,
        )
    return [callback for callback in callbacks if type(callback).__name__ not in without]
