"""`aegpo plan`: what it says of a run is what the run then counts."""

from __future__ import annotations

import re
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from tiny_families import FAMILIES
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.evaluations import PURPOSES
from aegpo.exploration import (
    EntropyPeaks,
    FixedSplits,
    FixedSteps,
    NoSteps,
    RandomSteps,
    StepSelector,
)
from aegpo.objectives import AWM, NFT, RandomStepPruning
from aegpo.planning.counts import PlansEvaluations, Range
from aegpo.policies.families.flux import Flux
from aegpo.policies.families.flux2 import Flux2, Flux2Klein
from aegpo.policies.families.qwen_image import QwenImage
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.policies.families.z_image import ZImage
from aegpo.rollout import RolloutWarmup
from aegpo.samplers import AdamsBashforth, UniPC
from aegpo.sde import ODE
from aegpo.selection import Extremes
from callbacks.budget_stop import BudgetStop
from callbacks.cost_logger import CostLogger
from callbacks.entropy_probe import EntropyProbe
from callbacks.evaluate_by_cost import EvaluateByCost
from callbacks.reward_spread import RewardSpread
from callbacks.step_spread import TrialSpread
from lightning_modules.cli.lightning_cli import main
from lightning_modules.commands.plan.page import duration, number, page
from lightning_modules.commands.plan.plan import make_plan
from lightning_modules.commands.plan.run_length import count_processes
from lightning_modules.commands.plan.run_plan import RunPlan

PROBE = {"trajectories": 2, "every_n_iterations": 2}
GUIDED = {"guidance_scale": 2.0}


def nft() -> NFT:
    return NFT(times_per_image=2, kl_coeff=0.1)


def trials() -> list[L.Callback]:
    return [TrialSpread(images=2, prompts=3, every_n_iterations=2)]


RUNS: dict[str, tuple[dict[str, Any], Any, dict[str, Any], set[str]]] = {
    # Settings of the module, of its policy, callbacks, and which purposes are ranges.
    "grpo": ({"step_selector": FixedSteps([0, 2]), "inner_epochs": 2}, list, {}, set()),
    "aegpo": ({}, entropy_callbacks, {}, {"reference"}),
    "sparse probe": ({}, partial(entropy_callbacks, **PROBE), {}, {"reference"}),
    "entropy of rollouts": (
        {"step_selector": EntropyPeaks(top_k=3)},
        partial(entropy_callbacks, source="rollouts", **PROBE),
        {},
        {"reference"},
    ),
    "kl and pruning": (
        {"step_selector": RandomSteps(3), "kl_coeff": 0.1, "pruning": RandomStepPruning(0.7)},
        list,
        {},
        set(),
    ),
    "fixed tree": (
        {"step_selector": FixedSplits([0, 2]), "allocator": UniformAllocator(4)},
        list,
        {},
        set(),
    ),
    "tree at peaks": (
        {"step_selector": EntropyPeaks(top_k=2, branching=2), "shared_start": True},
        entropy_callbacks,
        {},
        {"rollout", "update", "reference"},
    ),
    "guidance": ({"kl_coeff": 0.1}, entropy_callbacks, GUIDED, {"reference"}),
    "unguided": ({"kl_coeff": 0.1, "unguided": True}, entropy_callbacks, GUIDED, {"reference"}),
    "trials": ({}, trials, {}, set()),
    "nft": (
        {"step_selector": NoSteps(), "objective": nft(), "allocator": UniformAllocator(3)},
        list,
        GUIDED,
        {"rollout"},  # nothing lags behind in the first iteration
    ),
    "warm-up": (
        {
            "step_selector": NoSteps(),
            "objective": nft(),
            "allocator": UniformAllocator(4),
            "warmup": RolloutWarmup(3, 3, AdamsBashforth(), Extremes(2)),
        },
        entropy_callbacks,
        {},
        {"rollout", "reference"},
    ),
    "awm": (
        {
            "step_selector": NoSteps(),
            "objective": AWM(times_per_image=2),
            "allocator": UniformAllocator(3),
            "inner_epochs": 2,
        },
        list,
        GUIDED,
        set(),
    ),
    "spread of rewards": ({}, lambda: [RewardSpread()], {}, set()),
    "half precision": ({}, list, {"dtype": "bfloat16"}, set()),
}


def build(folder: Path, settings: dict[str, Any], policy: dict[str, Any]) -> Any:
    module = tiny_module(folder, seed=0, **settings)
    if isinstance(module.objective, NFT | AWM):
        module.sde = ODE()
    module.policy_factory = partial(
        StableDiffusion3, str(folder), lora_rank=4, max_sequence_length=4, **policy
    )
    return module


@pytest.mark.parametrize("name", RUNS)
def test_planned_evaluations_are_those_that_a_run_counts(
    name: str, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    settings, callbacks, policy, ranges = RUNS[name]
    module, data = build(tiny_sd3_folder, settings, policy), tiny_data(tmp_path)
    epochs = 1 if callbacks is list else 2  # what comes every second iteration has to come twice
    trainer = tiny_trainer(tmp_path, callbacks(), max_epochs=epochs, num_sanity_val_steps=1)
    plan = make_plan(trainer, module, data)
    assert not hasattr(module, "policy")
    assert list(tmp_path.iterdir()) == [tmp_path / "prompts.jsonl"]
    iterations = 2 * epochs
    assert plan.evaluations is not None
    assert plan.length.iterations == Range(iterations, iterations)

    trainer.fit(module, datamodule=data)
    counted = module.policy.evaluations.counts
    assert counted["other"] == 0
    for purpose, planned in plan.evaluations.items():
        assert planned.low <= counted[purpose] <= planned.high, purpose
    assert {p for p, planned in plan.evaluations.items() if planned.low < planned.high} == ranges
    assert {*plan.evaluations, "other"} == set(PURPOSES)
    assert plan.size is not None
    assert plan.size.trainable == sum(p.numel() for p in module.policy.trainable_parameters())


def small_plan(folder: Path, tmp_path: Path, *callbacks: L.Callback, **trainer: Any) -> RunPlan:
    module = tiny_module(folder, step_selector=FixedSteps([0, 2]))
    module.policy_factory = lambda: None  # says nothing of its networks, which take a second
    return make_plan(
        tiny_trainer(tmp_path, list(callbacks), **trainer), module, tiny_data(tmp_path)
    )


def test_budgets_and_marks_end_a_run_and_set_its_validations(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    callbacks = [BudgetStop(600), EvaluateByCost(200), CostLogger()]
    plan = small_plan(tiny_sd3_folder, tmp_path, *callbacks, max_epochs=-1)
    module = build(tiny_sd3_folder, {"step_selector": FixedSteps([0, 2])}, {})
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=-1)
    trainer.fit(module, datamodule=tiny_data(tmp_path))
    counts = module.policy.evaluations.counts
    assert plan.length.iterations == Range.exactly(module.iteration)
    assert plan.total == Range.exactly(module.policy.evaluations.total)
    assert plan.evaluations is not None
    low, high = plan.evaluations["validation"].low, plan.evaluations["validation"].high
    assert low <= counts["validation"] <= high == low + plan.validation > 0


@pytest.mark.parametrize(
    ("limits", "iterations", "validations"),
    [
        ({"max_epochs": 3}, 6, 3),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, 8, 2),
        ({"max_epochs": 3, "val_check_interval": 0.5}, 6, 6),
        ({"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}, 6, 2),
        # The last model is always scored.
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 6, 2),
        ({"max_epochs": 3, "limit_train_batches": 1}, 3, 3),
        ({"max_steps": 6, "max_epochs": -1}, 3, 2),
        ({"max_epochs": 3, "limit_val_batches": 0}, 6, 0),
    ],
)
def test_the_limits_of_the_trainer(
    limits: dict[str, Any], iterations: int, validations: int, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    length = small_plan(tiny_sd3_folder, tmp_path, **limits).length
    assert length.iterations == Range.exactly(iterations)
    assert length.validations == Range.exactly(validations)


def test_a_run_without_an_end_is_planned_by_the_iteration(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    plan = small_plan(tiny_sd3_folder, tmp_path, max_epochs=-1)
    assert plan.evaluations is None and plan.total is None and plan.memory is None
    assert plan.iteration.evaluations["rollout"] == Range.exactly(12 * 5)
    assert "no end" in printed(plan)


def printed(plan: RunPlan) -> str:
    console = Console(width=80, file=StringIO())
    console.print(page(plan))
    return console.file.getvalue()


def test_the_page_fits_and_says_what_is_known(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    module, data = build(tiny_sd3_folder, {}, {}), tiny_data(tmp_path)
    trainer = tiny_trainer(tmp_path, entropy_callbacks())
    text = printed(make_plan(trainer, module, data, processes=2, rate=50.0))
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) <= 50
    assert "2–4, 3 on average" in text and "2 of 5" in text and "each of 2" in text
    assert "at 50 evaluations a second (--rate)" in text
    assert "busiest process draws up to 50%" in text  # 4 + 2 images on each of both
    assert re.search(r"steps without noise +Euler", text)
    settings = {
        **{"step_selector": NoSteps(), "objective": nft(), "sampler": UniPC()},
        "warmup": RolloutWarmup(2, 3, AdamsBashforth()),
    }
    text = printed(make_plan(trainer, build(tiny_sd3_folder, settings, {}), data))
    assert re.search(r"noise +UniPC\(order=2\)", text)
    assert re.search(r"first 2 iterations +3 by AdamsBashforth\(\)", text)
    text = printed(make_plan(trainer, module, data, spread=True))  # by fsdp2, over nobody else
    assert "--measured" in text and "--processes N" in text


def test_a_micro_batch_has_no_more_samples_than_an_update(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    def planned(micro_batch_size: int, updates: int) -> float:
        settings = {
            **{"step_selector": FixedSteps([0, 2]), "updates_per_epoch": updates},
            "micro_batch_size": micro_batch_size,
        }
        module = build(tiny_sd3_folder, settings, {})
        plan = make_plan(tiny_trainer(tmp_path, []), module, tiny_data(tmp_path))
        assert plan.memory is not None and plan.iteration.samples == Range(24, 24)
        return plan.memory.takes_turns["update of a micro-batch"]

    assert planned(1000, 1) == planned(24, 1) == 2 * planned(12, 1) == 2 * planned(1000, 2)


def test_the_rate_of_a_measured_run(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs", name="", version="")
    logged = {
        1: {"cost/evaluations": 500.0, "seconds/rollout": 90.0, "memory/peak_gib": 1.5},
        2: {"cost/evaluations": 600.0, "seconds/rollout": 3.0, "seconds/update": 2.0},
        3: {"cost/evaluations": 800.0, "seconds/rollout": 3.0, "seconds/update": 2.0},
    }
    for step, metrics in logged.items():
        logger.log_metrics(metrics, step)
    logger.save()
    module, data = build(tiny_sd3_folder, {}, {}), tiny_data(tmp_path)
    trainer = tiny_trainer(tmp_path, [])
    plan = make_plan(trainer, module, data, measured=str(tmp_path / "logs"))
    # An estimate never stands beside a measurement without a word.
    said = " ".join(printed(plan).split())
    estimate = plan.memory.peak / 2**30
    assert "1.50 GiB" in said
    assert f"estimate above is {estimate:.2f} GiB; the measurement is {1.5 - estimate:+.2f}" in said
    # Without the first iteration: 300 evaluations in 10 seconds.
    assert plan.rate is not None and plan.rate.per_second == pytest.approx(30)
    assert "1.50 GiB" in printed(plan)
    with pytest.raises(ValueError, match="no cost/evaluations is logged there"):
        make_plan(trainer, module, data, measured=str(tmp_path))
    with pytest.raises(ValueError, match="excludes --measured"):
        make_plan(trainer, module, data, rate=3.0, measured=str(tmp_path / "logs"))


def test_what_cannot_be_planned_is_refused(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    module, data = build(tiny_sd3_folder, {}, {"lora_targets": ["nothing"]}), tiny_data(tmp_path)
    with pytest.raises(ValueError, match="'nothing' matches no linear layer"):
        make_plan(tiny_trainer(tmp_path, []), module, data)
    with pytest.raises(ValueError, match="it was given LightningModule"):
        make_plan(tiny_trainer(tmp_path, []), L.LightningModule(), data)
    module.policy_factory = partial(StableDiffusion3, str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        make_plan(tiny_trainer(tmp_path, []), module, data)
    module = build(tiny_sd3_folder, {}, {})
    with pytest.raises(ValueError, match="--processes 0 must be at least 1"):
        make_plan(tiny_trainer(tmp_path, []), module, data, processes=0)
    # A rank without a prompt waits for the others; the training itself says so in a warning.
    assert make_plan(tiny_trainer(tmp_path, []), module, data, processes=5).processes == 5


@pytest.mark.parametrize(
    ("policy", "arguments", "evaluations"),
    [
        (StableDiffusion3, {"guidance_scale": 2.0}, 2),
        (Flux, {"guidance_scale": 7.0}, 1),  # distilled, an input of the transformer
        (Flux, {"true_cfg_scale": 2.0}, 2),
        (Flux2, {"guidance_scale": 7.0}, 1),
        (Flux2Klein, {}, 2),
        (QwenImage, {"true_cfg_scale": 2.0}, 2),
        (ZImage, {}, 1),
        (ZImage, {"guidance_scale": 0.5}, 2),
    ],
)
def test_without_the_network_a_hub_id_is_planned_without_memory(
    policy: Any,
    arguments: dict[str, Any],
    evaluations: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    module = tiny_module(tmp_path)
    module.policy_factory = partial(policy, "nobody/nothing", **arguments)
    plan = make_plan(tiny_trainer(tmp_path, []), module, tiny_data(tmp_path))
    assert plan.memory is None and "Memory is unknown: pretrained='nobody/nothing'" in printed(plan)
    assert plan.iteration.evaluations["rollout"] == Range.exactly(12 * 5 * evaluations)


@pytest.mark.parametrize("name", ["Flux", "Flux2Klein", "QwenImage", "ZImage"])
def test_every_kind_of_guidance_is_counted_and_memory_estimated(name: str, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    family.pipeline().save_pretrained(tmp_path / "pipeline")
    module = tiny_module(tmp_path, step_selector=FixedSteps([0, 2]))
    arguments = family.arguments(tmp_path / "pipeline", **family.guided)
    module.policy_factory = partial(family.policy, **arguments)
    plan = make_plan(tiny_trainer(tmp_path, entropy_callbacks()), module, tiny_data(tmp_path))
    assert plan.iteration.evaluations["rollout"] == Range.exactly(12 * 5 * 2)
    text = printed(plan)
    for row in ("update of a micro-batch", "rollout", "decoding", "attention scores of the probe"):
        assert f"in turn: {row} (estimate)" in text
    assert "Not estimated" not in text


def test_what_cannot_be_estimated_is_said(
    tiny_sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_a_number(policy: Any, latents: torch.Tensor, *_: Any) -> torch.Tensor:
        return latents * latents.sum().item()

    monkeypatch.setattr(StableDiffusion3, "predict", reads_a_number)
    module = build(tiny_sd3_folder, {}, {})
    text = printed(make_plan(tiny_trainer(tmp_path, []), module, tiny_data(tmp_path)))
    assert "Not estimated: update, rollout and probe" in text and "in turn: decoding" in text
    assert max(map(len, text.splitlines())) <= 80


def test_planning_changes_nothing(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    objective = nft()
    settings = {"step_selector": NoSteps(), "objective": objective}
    module = build(tiny_sd3_folder, settings, {})
    make_plan(tiny_trainer(tmp_path, []), module, tiny_data(tmp_path))
    assert objective.state_dict() == {"behavior": {}}  # nothing followed, nothing was copied
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_and_durations() -> None:
    assert number(Range(1200, 1300)) == "1,200–1,300" and number(7.0) == "7"
    assert [duration(s) for s in (90, 900, 20000, 600000)] == [
        "90 s",
        "15 min",
        "5.6 h",
        "6.9 days",
    ]


def test_processes_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cases = [("gpu", 8, 2), ("gpu", [0, 1], 1), ("gpu", "auto", 2), ("cpu", "auto", 1)]
    assert [count_processes(*case) for case in cases] == [16, 2, 8, 1]
    assert [count_processes("gpu", d, 1) for d in ("3", "0,2", -1)] == [3, 2, 4]


def test_callbacks_answer_for_themselves() -> None:
    assert isinstance(EntropyProbe(), PlansEvaluations)
    assert not isinstance(CostLogger(), PlansEvaluations)


def test_the_command_plans_a_bundled_config_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    config = Path(__file__).parents[3] / "configs" / "shapes.yaml"
    # GPUs that this machine may not have are no obstacle.
    gpus = ["--trainer.accelerator", "gpu", "--trainer.devices", "4", "--trainer.strategy", "ddp"]
    main(["plan", "--config", str(config), *gpus, "--rate", "950"])
    text = capsys.readouterr().out
    assert "each of 4" in text and "540,672 parameters trained" in text
    assert "12,800" in text  # images: 100 iterations of 8 prompts with 16 each
    assert "at 950 evaluations a second (--rate): 4 min–5 min" in text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main(["plan", "--config", str(config), "--model.init_args.num_stepz", "4"])
    assert "no argument 'num_stepz'" in capsys.readouterr().err


class Unready(StepSelector):
    """A selector that was written for runs that have a reading."""

    def mark(self, explores, entropy, noise, index):
        explores[entropy.curve[:, :-1] > 0.5] = True


def test_what_a_selector_raises_is_one_line(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    module = tiny_module(tiny_sd3_folder, step_selector=Unready())
    words = r"Unready raised AttributeError: 'NoneType' .*test_plan.py:\d+\) .* \(entropy is None"
    with pytest.raises(ValueError, match=words) as raised:
        make_plan(tiny_trainer(tmp_path, []), module, tiny_data(tmp_path))
    assert "\n" not in str(raised.value)


def plan_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["plan", *arguments])
    return capsys.readouterr().out


def test_a_model_that_is_spread_is_planned_by_what_one_card_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped files for it, over a tiny pipeline of FLUX.1's class."""
    monkeypatch.setenv("COLUMNS", "80")
    (family,) = (one for one in FAMILIES if one.name == "Flux")
    family.pipeline().save_pretrained(tmp_path / "flux")
    folder = Path(__file__).parents[3] / "configs"
    flux = ["--config", str(folder / "models/flux1_dev.yaml")]
    flux += ["--config", str(folder / "rewards/hpsv21.yaml")]
    tiny = ["--model.policy.pretrained", str(tmp_path / "flux")]
    tiny += ["--model.policy.resolution", "16", "--model.policy.max_sequence_length", "8"]

    def kept(*arguments: str) -> tuple[str, float, float]:
        text = plan_text(capsys, *flux, *arguments, *tiny)
        numbers = dict(re.findall(r"^ *(.+?) {2,}([\d.]+)\s*$", text, re.M))
        one = "trained weights, gradients, optimizer"
        return text, float(numbers[one]), float(numbers.get("gathered weights and gradients", 0))

    full = ["--config", str(folder / "hardware/8x80gb_full_flux.yaml")]
    text, spread, gathered = kept(*full)
    assert "each of 8" in text and gathered > 0
    assert "over 8 processes; the memory is that of one." in text
    text, whole, gathered = kept(*full, "--trainer.strategy", "ddp")
    assert gathered == 0 and spread == pytest.approx(whole / 8, abs=0.01)

    two = ["--config", str(folder / "hardware/2x8x80gb.yaml")]
    two += ["--config", str(folder / "overlays/fsdp2.yaml"), "--trainer.devices", "8"]
    text, _, gathered = kept(*two)
    assert "each of 16" in text and "over 16 processes" in text and gathered > 0
