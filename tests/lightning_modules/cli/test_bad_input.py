"""Bad input to the real config gets one clear line and status 2 before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import StableDiffusion3Pipeline
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from tiny_training import tiny_trainer

from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.arguments.early import early_mistake
from lightning_modules.cli import main as entry
from lightning_modules.policy_module import PolicyModule

ROOT = Path(__file__).parents[3]
MISTYPED = {
    "key": "model: {init_args: {clip_rang: 1.0e-4}}",
    "moved": "model: {init_args: {policy: {class_path: aegpo.policies.flux.Flux}}}",
    "callback": "trainer: {callbacks: [{class_path: callbacks.EntropyProb}]}",
    "inner": (
        "trainer: {callbacks: [{class_path: callbacks.EntropyProbe, init_args: {recorder: "
        "{class_path: aegpo.entropy.EntropyRecorder, init_args: {layer: all}}}}]}"
    ),
    "module": "model: {init_args: {sde: {class_path: aegpo.sde.nope.Nothing}}}",
    "optimizer": (
        "model: {init_args: {optimizer: {class_path: torch.optim.AdamW, init_args: {lrr: 1}}}}"
    ),
    "section": "modell: {lr: 1}",
    "option": "trainer: {max_step: 1}",
}
"""Configs by name, laid over those of Shapes."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with some files to name; loading any weight fails the test."""

    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(StableDiffusion3Pipeline, "from_pretrained", loaded)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("AEGPO_DEBUG", raising=False)
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "prompts.jsonl").write_text('{"text": "a red circle", "category": "single"}\n')
    (tmp_path / "prompts.csv").write_text("text,category\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    for name in ("shapes", "overlays/aegpo"):
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        del config["trainer"]
        file = tmp_path / f"without_trainer_{Path(name).name}.yaml"
        file.write_text(yaml.safe_dump(config))
    for name, text in MISTYPED.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "reweighter.yaml").write_text(
        "trainer: {callbacks: [{class_path: callbacks.PromptReweighter}]}\n"
    )
    return tmp_path


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run `aegpo fit` on Shapes, in the paper's form, and return the line of its refusal.

    What would have been said before Lightning is imported has to be that line. Where it is not
    about the trainer, the config's own is left out, whose callbacks take as long as all the rest.
    """
    said_before: list[str | None] = []

    def not_yet(*settings: Any) -> None:
        said_before.append(early_mistake(*settings))

    monkeypatch.setattr(entry, "early_mistake", not_yet)
    whole = args[0].startswith(("--trainer", "--config"))
    files = [str(ROOT / f"configs/{name}.yaml") for name in ("shapes", "overlays/aegpo")]
    files = files if whole else [f"without_trainer_{name}.yaml" for name in ("shapes", "aegpo")]
    given = [word for file in files for word in ("--config", file)]
    arguments = ["aegpo", "fit", *given, "--trainer.accelerator", "cpu", *args]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    news = ("Seed set to", "GPU available", "TPU available")  # Lightning's greeting
    lines = [line for line in captured.err.splitlines() if line and not line.startswith(news)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert said_before in ([None], [lines[0].removeprefix("error: ")])
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--data.train_file nowhere.jsonl", ["'nowhere.jsonl' does not exist"]),
        ("--data.val_file nowhere.csv", ["'nowhere.csv' does not exist"]),
        ("--data.train_file photos", ["'photos' ends in 'nothing'", ".txt, .jsonl, .csv"]),
        ("--data.train_file shapes:training", ["training", "heldout"]),
        ("--data.train_file empty.txt", ["'empty.txt' holds no prompt"]),
        ("--data.train_file prompts.csv", ["'prompts.csv' holds no prompt"]),
        (
            "--data.train_file prompts.jsonl --data.column caption",
            ["prompts.jsonl has no column 'caption'; it has ['category', 'text']"],
        ),
        ("--data.batch_size 100000", ["batch_size=100000", "prompts of the dataset"]),
        ('--data.shares {"single":1.0}', ["data.shares names ['single']", "'relation'"]),
        (
            "--model.step_selector.top_k 10 --model.num_steps 10",
            ["top_k=10 needs at least 11 denoising steps", "num_steps=10", "lower top_k"],
        ),
        (
            "--model.allocator aegpo.allocation.UniformAllocator "
            "--model.allocator.images_per_prompt 1",
            ["images_per_prompt=1", "fewer than 2 images"],
        ),
        ("--model.allocator.low 1", ["low=1", "fewer than 2 images"]),
        (
            "--data.batch_size 5 --model.allocator.low 7 --model.allocator.high 8",
            ["an odd batch_size=5", "low=7"],
        ),
        (
            "--model.reward aegpo.rewards.ShapesMach",
            ["there is no 'ShapesMach' in aegpo.rewards", "did you mean 'ShapesMatch'?"],
        ),
        ("--model.reward no_such_module.MyReward", ["there is no module 'no_such_module'"]),
        ("--model.sde aegpo.exploration.AllSteps", ["model.sde", "AllSteps"]),
        ("--config gone.yaml", ["there is no config gone.yaml"]),
        ("--config moved.yaml", ["model.policy: aegpo.policies.flux.Flux is now"]),
        ("--config callback.yaml", ["trainer.callbacks: there is no 'EntropyProb' in callbacks"]),
        ("--config inner.yaml", ["trainer.callbacks.recorder: aegpo.entropy.EntropyRecorder has"]),
        ("--config module.yaml", ["model.sde: there is no 'nope' in aegpo.sde"]),
        ("--config optimizer.yaml", ["model.optimizer: torch.optim.AdamW has no argument 'lrr'"]),
        ("--config section.yaml", ["there is no option 'modell.lr'; did you mean 'model'?"]),
        ("--modell.lr 3", ["there is no option 'modell.lr'; did you mean 'model'?"]),
        ("--config option.yaml", ["there is no option 'trainer.max_step'"]),
        ("--config key.yaml", ["has no argument 'clip_rang'; did you mean 'clip_range'?"]),
        ("--model.clip_rang 1e-4", ["argument 'clip_rang'; did you mean 'clip_range'?"]),
        (
            "--model.policy.lora_rnk 4",
            ["StableDiffusion3 has no argument 'lora_rnk'; did you mean 'lora_rank'?"],
        ),
        ("--model.optimizer.lr 3e-4e", ["model.optimizer.lr: expected float", "got '3e-4e'"]),
        ("--model.reward aegpo.rewards.WeightedSum", ["aegpo.rewards.WeightedSum needs rewards"]),
        ("--trainer.max_epohcs 3", ["did you mean 'trainer.max_epochs'?"]),
        ("--seed 3", ["there is no option 'seed'; did you mean 'seed_everything'?"]),
        ("--trainer.max_ep 3", ["no option 'trainer.max_ep'; did you mean 'trainer.max_epochs'?"]),
        ("--data.batch_si 3", ["has no argument 'batch_si'; did you mean 'batch_size'?"]),
        ("--config reweighter.yaml", ["PromptReweighter needs", "callbacks.EntropyProbe"]),
        ("--seed_everything -1", ["seed_everything=-1 must be between 0 and 4294967295"]),
        ("--seed_everything 99999999999999", ["must be between 0 and 4294967295"]),
        ("--data.val_images -2", ["data.val_images=-2 must be at least 0; 0 draws none"]),
        ("--data.val_batch_size 0", ["data.val_batch_size=0 must be at least 1"]),
        ("--data.batches_per_epoch 0", ["data.batches_per_epoch=0 must be at least 1"]),
        ("--data.alpha .nan", ["alpha=nan finite"]),
        (
            '--data.shares {"single":1.4,"count":-0.4,"two":0,"relation":0}',
            ["must be finite and at least 0"],
        ),
        (
            "--model.objective aegpo.objectives.NFT --model.transition_weight null "
            "--model.kl_coeff 0.04",
            ["model.kl_coeff belongs to the policy gradient", "NFT"],
        ),
        ("--model.kl_normalization paper", ["kl_normalization", "variance", "diffusion"]),
        ("--model.step_selector.eta 0", ["eta=0", "above 0"]),
        (
            "--model.reward aegpo.rewards.WeightedSum --model.reward.weights [0.0] "
            '--model.reward.rewards [{"class_path":"aegpo.rewards.ShapesMatch"}]',
            ["are all 0"],
        ),
        ("--data.batch_size --model.num_steps 3", ["--data.batch_size needs a value"]),
        ("--config", ["--config needs a value"]),
        ("--model.optimizer.lr -0.1", ["AdamW: Invalid learning rate: -0.1"]),
        ("--model.lr_scheduler.start_factor -1", ["LinearLR: Starting multiplicative factor"]),
        (
            "--trainer.check_val_every_n_epoch 0",
            ["trainer.check_val_every_n_epoch=0 must be above 0", "limit_val_batches 0"],
        ),
        ("--trainer.val_check_interval 0", ["trainer.val_check_interval=0 must be above 0"]),
        ("--trainer.log_every_n_steps -3", ["log_every_n_steps=-3 must not be below 0"]),
        ("--trainer.precision bf16-true", ["precision=bf16-true", "32-true, bf16-mixed"]),
        ("--trainer.precision 16-true", ["precision=16-true", "32-true, bf16-mixed"]),
    ],
)
def test_bad_settings_are_refused_before_the_policy_is_built(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    expected: list[str],
) -> None:
    def built(self: PolicyModule) -> None:
        raise AssertionError("the policy was built before the mistake was found")

    monkeypatch.setattr(PolicyModule, "configure_model", built)
    line = refusal(monkeypatch, capsys, *arguments.split())
    assert [part for part in expected if part not in line] == [], line


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ("photos", ["photos is no pipeline", "model_index.json", "StableDiffusion3Pipeline"]),
        ("other", ["other is a FluxPipeline", "StableDiffusion3Pipeline"]),
        ("nowhere", ["'nowhere' is neither a folder nor a hub id", "shapes"]),
    ],
)
def test_a_folder_that_is_no_pipeline_is_refused_before_its_weights_are_read(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pretrained: str,
    expected: list[str],
) -> None:
    line = refusal(monkeypatch, capsys, "--model.policy.pretrained", pretrained)
    assert [part for part in expected if part not in line] == [], line


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (FSDPStrategy, "fsdp"),
        (ModelParallelStrategy, "ModelParallelStrategy"),
        (DeepSpeedStrategy, "deepspeed"),
    ],
)
def test_strategies_that_cannot_train_a_policy_name_fsdp2(
    strategy: type[Strategy], name: str, tmp_path: Path
) -> None:
    # Lightning wants a GPU for the strategy's name, so the module's own check is called, with
    # Lightning's trainer, and the strategy as it is before its constructor asks for the GPU.
    unbuilt = object.__new__(strategy)
    unbuilt._precision_plugin = FSDPPrecision("32-true") if name == "fsdp" else Precision()
    trainer = tiny_trainer(tmp_path, [])
    trainer._accelerator_connector.strategy = unbuilt
    module = PolicyModule(lambda: pytest.fail("built"), [], num_steps=4, seed=0)
    module.trainer = trainer
    with pytest.raises(ValueError, match=rf"strategy={name} .* use fsdp2.* ddp$") as error:
        module.setup("fit")
    assert "\n" not in str(error.value)
    assert AEGPOModule.__mro__[1] is PolicyModule
