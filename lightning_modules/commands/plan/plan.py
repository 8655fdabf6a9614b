"""`aegpo plan`: what a run will do and cost, counted without a model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

from aegpo.planning.counts import PlansEvaluations, Range, RunShape
from aegpo.planning.memory import MemoryLoad, estimate_memory
from aegpo.planning.policy_size import PolicySize, policy_of, policy_size
from aegpo.planning.stand_in import StandInPolicy
from aegpo.policies.base import GuidanceGradient
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.pretrained import find_pipeline
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.plan.dry_run import PlannedIteration, dry_run
from lightning_modules.commands.plan.measured_rate import MeasuredRate, read_rate
from lightning_modules.commands.plan.page import page
from lightning_modules.commands.plan.run_length import count_processes, run_length
from lightning_modules.commands.plan.run_plan import RunPlan, sum_ranges
from lightning_modules.commands.plan.stretches import spent_in, stretches_of
from lightning_modules.training.fsdp2 import FSDP2

NEEDED = ("batch_size", "batches_per_epoch", "val_images", "val_batch_size")
LONG = 1000
"""Iterations among which they lie where the length of a run depends on what they cost."""


@dataclass(frozen=True)
class _PlannedPolicy:
    """As much of the policy's constructor arguments as a plan needs, and its networks."""

    guidance_scale: float = 1.0
    guidance_gradient: GuidanceGradient = "both"
    max_batch: int = 64
    decode_batch: int = 64
    half_weights: bool = False  # frozen weights below fp32
    size: PolicySize | None = None
    unknown: str = ""


def plan(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    processes: int | None = None,
    rate: float | None = None,
    measured: str | None = None,
    run: ConfiguredRun | None = None,
) -> None:
    """Say what a run will do and cost, without loading a model or writing anything.

    Args:
        trainer: A trainer with the run's limits and callbacks.
        model: The configured module.
        datamodule: The configured data.
        ckpt_path: Accepted and not read: the plan is that of a run from its start.
        weights_only: Accepted and not used, as no checkpoint is read.
        processes: Processes (GPUs) that share the prompts; those of the config by default.
        rate: Model evaluations per second, all processes together, for the time.
        measured: Log folder of a finished run, TensorBoard or CSV, to read that rate from.
        run: The run as configured: its devices may be those of another machine.
    """
    if processes is None and run is not None:
        wanted = run.trainer
        processes = count_processes(wanted["accelerator"], wanted["devices"], wanted["num_nodes"])
    elif processes is None:
        processes = trainer.world_size
    strategy = trainer.strategy if run is None else run.trainer["strategy"]
    spread = strategy == FSDP2.strategy_name or isinstance(strategy, FSDP2)
    Console(markup=False).print(
        page(make_plan(trainer, model, datamodule, processes, rate, measured, spread))
    )


def make_plan(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    processes: int = 1,
    rate: float | None = None,
    measured: str | None = None,
    spread: bool = False,
) -> RunPlan:
    """Count what a run does and spends; no model is built.

    Args:
        trainer: A trainer with the run's limits and callbacks.
        model: The configured module, an `AEGPOModule`.
        datamodule: The configured data.
        processes: Ranks that share the prompts.
        rate: Model evaluations per second, all ranks together.
        measured: Log folder to read the rate from instead.
        spread: Whether FSDP2 spreads the denoiser over the ranks.

    Returns:
        The plan.

    Raises:
        ValueError: If there is no such module or data, or the settings cannot work.
    """
    data: Any = datamodule
    missing = [name for name in NEEDED if not hasattr(data, name)]
    if not isinstance(model, AEGPOModule) or missing:
        raise ValueError(
            "aegpo plan needs lightning_modules.AEGPOModule and data with "
            f"{', '.join(NEEDED)}; it was given {type(model).__name__} and "
            f"{type(datamodule).__name__}"
        )
    if rate is not None and (measured is not None or rate <= 0):
        raise ValueError(f"--rate {rate} must be above 0, and excludes --measured; give one")
    if processes < 1:
        raise ValueError(f"--processes {processes} must be at least 1")
    known = None if rate is None else MeasuredRate(rate, None, "--rate")
    known = known if measured is None else read_rate(Path(measured))
    policy = _policy(model)
    if model.unguided:
        policy = replace(policy, guidance_scale=1.0, guidance_gradient="both")
    rows = 1 if policy.guidance_scale == 1 else 2
    half = trainer.precision == "bf16-mixed"
    callbacks = [c for c in trainer.callbacks if isinstance(c, PlansEvaluations)]  # type: ignore[attr-defined]
    bound = max((trainer.max_epochs or 0) * data.batches_per_epoch, 0) or LONG

    def tried(iterations: list[int]) -> PlannedIteration:
        return dry_run(
            model,
            data.batch_size,
            iterations,
            {kind for callback in callbacks for kind in callback.publishes},
            policy=StandInPolicy(policy.guidance_scale, policy.guidance_gradient),
            rescores=half or policy.half_weights,
            world_size=processes,
        )

    *warm, settled = stretches = stretches_of(model, bound, tried)
    iteration = settled.iteration
    num_prompts = len(data.train_prompts) if hasattr(data, "train_prompts") else None

    def spent(iterations: int) -> dict[str, Range]:
        run = RunShape(iterations, data.batch_size, settled.num_steps, num_prompts)
        return spent_in(stretches, callbacks, run, rows)

    updates = model.inner_epochs * model.updates_per_epoch
    length = run_length(trainer, data, callbacks, updates, lambda n: sum_ranges(spent(n).values()))
    validation = length.val_images * model.evaluation_steps * rows
    evaluations = None
    if length.iterations is not None and length.validations is not None:
        evaluations = _run_evaluations(length.iterations, spent)
        sanity = length.sanity_images * model.evaluation_steps * rows
        evaluations["validation"] = length.validations * validation + Range.exactly(sanity)
    memory = None
    if policy.size is not None:
        share = iteration.busiest_share
        images = math.ceil(iteration.images.high * share)
        largest_call = min(policy.max_batch, images * rows)
        one_branch = policy.guidance_gradient == "conditional"
        samples = max(one.iteration.samples.high for one in stretches)
        of_update = max(1, math.ceil(samples * share / model.updates_per_epoch))
        # `auto`: as many as fit, but one where nothing else does.
        together = 1 if model.micro_batch_size == "auto" else model.micro_batch_size
        load = MemoryLoad(
            micro_batch_rows=min(together, of_update) * (1 if one_branch else rows),
            rollout_rows=largest_call,
            decoded=min(policy.decode_batch, images),
            transitions=math.ceil(iteration.transitions.high * share),
            probe_rows=largest_call,
            scored_rows=lambda tokens: max((c.scored_rows(tokens) for c in callbacks), default=0),
            needs_reference=evaluations is None or evaluations["reference"].high > 0,
            weight_copies=model.objective.weight_copies,
            half_activations=half,
            spread_over=processes if spread else 1,
            gradient_copies=model.objective.gradient_copies + model.step_selector.gradient_copies,
        )
        memory = estimate_memory(policy.size, load, model.optimizer_factory)
    return RunPlan(
        iteration=iteration,
        length=length,
        batch_size=data.batch_size,
        num_steps=settled.num_steps,
        sampler=settled.sampler,
        updates=updates,
        processes=processes,
        evaluations=evaluations,
        validation=validation,
        size=policy.size,
        memory=memory,
        unknown=policy.unknown,
        rate=known,
        spread=spread,
        warmup=warm[0] if warm else None,
    )


def _policy(model: AEGPOModule) -> _PlannedPolicy:
    """Read the policy's arguments off its factory, and build it without weights."""
    policy, given = policy_of(model.policy_factory)
    if policy is None:
        unknown = "the policy is built by a function, whose arguments are not seen here"
        return _PlannedPolicy(unknown=unknown)
    named = inspect.signature(policy).parameters.values()
    # What a class leaves to its parents is no parameter of its own.
    common = inspect.signature(DiffusersPolicy).parameters.values()
    defaults = {p.name: p.default for p in (*common, *named) if p.default is not p.empty}
    arguments = defaults | given
    if not issubclass(policy, DiffusersPolicy) or "pretrained" not in arguments:
        return _PlannedPolicy(
            guidance_scale=float(arguments["guidance_scale"]),
            unknown=f"{policy.__name__} is built from no pretrained pipeline of diffusers",
        )
    try:
        size = policy_size(policy, given)
    except (FileNotFoundError, PermissionError) as error:
        if not isinstance(find_pipeline(arguments["pretrained"]), str):
            raise
        # A hub id, and no network or no access: the counts are known all the same.
        return _PlannedPolicy(
            guidance_scale=policy.classifier_free_guidance(arguments),
            guidance_gradient=arguments["guidance_gradient"],
            max_batch=int(arguments["max_batch"]),
            decode_batch=int(arguments["decode_batch"]),
            half_weights=arguments["dtype"] != "float32" and not arguments["full_finetuning"],
            unknown=str(error),
        )
    built = size.policy
    return _PlannedPolicy(
        guidance_scale=built.guidance_scale,
        guidance_gradient=built.guidance_gradient,
        max_batch=built.max_batch,
        decode_batch=built.decode_batch,
        half_weights=built.compute_dtype != torch.float32,
        size=size,
    )


def _run_evaluations(
    iterations: Range, spent: Callable[[int], dict[str, Range]]
) -> dict[str, Range]:
    """Training evaluations of the whole run."""
    long, short = spent(int(iterations.high)), spent(int(iterations.low))
    if iterations.low == iterations.high:
        return long
    # A run that ends by its budget is long where iterations are cheap.
    return {name: Range.over([long[name].low, short[name].high]) for name in long}
