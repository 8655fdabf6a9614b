"""Mistakes that show without an import; what is not certain is left to the parser."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lightning_modules.arguments.early import early_mistake
from lightning_modules.commands import COMMANDS

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
MODEL = "model: {class_path: lightning_modules.AEGPOModule, init_args: {%s}}"
REWARD = MODEL % "reward: {class_path: aegpo.rewards.ShapesMach}"


def told(*arguments: str) -> str | None:
    return early_mistake(["fit", *arguments], COMMANDS, (), COMMANDS["fit"].options())


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (REWARD, "model.reward: there is no 'ShapesMach' in aegpo.rewards; did you mean"),
        (
            MODEL % "clip_rang: 1",
            "model: lightning_modules.AEGPOModule has no argument 'clip_r",
        ),
        (
            MODEL % "policy: {class_path: aegpo.policies.Flux, init_args: {lora_rnk: 4}}",
            "model.policy: aegpo.policies.Flux has no argument 'lora_rnk'; did you mean 'lora_",
        ),
        (
            MODEL % "policy: {class_path: aegpo.policies.flux.Flux}",
            "model.policy: aegpo.policies.flux.Flux is now aegpo.policies.Flux",
        ),
        (
            MODEL % "sde: {class_path: no_such.SDE}",
            "model.sde: there is no module 'no_such', neither installed nor",
        ),
        (
            MODEL % "optimizer: {class_path: torch.optim.AdamWW}",
            "model.optimizer: there is no 'AdamWW' in torch.optim; did you mean 'AdamW'?",
        ),
        (
            "trainer: {callbacks+: [{class_path: callbacks.EntropyProb}]}",
            "trainer.callbacks: there is no 'EntropyProb' in callbacks; did you mean",
        ),
        (
            "trainer: {callbacks: [{class_path: callbacks.EntropyProbe, init_args: {recorder: "
            "{class_path: aegpo.entropy.EntropyRecorder, init_args: {layer: all}}}}]}",
            "trainer.callbacks.recorder: aegpo.entropy.EntropyRecorder has no argument 'layer'",
        ),
        ("trainer: {max_step: 1}", "there is no option 'trainer.max_step'; did you mean"),
        ("modell: {lr: {fast: 1}}", "there is no option 'modell.lr.fast'; did you mean 'model'?"),
        ("a: 1\na: 2\n", "x.yaml:2: 'a' is given a second time"),
    ],
)
def test_a_mistake_in_a_file_is_told(folder: Path, config: str, line: str) -> None:
    (folder / "x.yaml").write_text(config)
    found = told("--config", "x.yaml")
    assert found is not None and found.startswith(line), found


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("--config nope.yaml", "there is no config nope.yaml"),
        ("--config=shape.yaml", "there is no config shape.yaml; did you mean 'shapes.yaml'?"),
        ("--config folder/x.yaml", "there is no config folder/x.yaml, nor a folder folder"),
        (
            "--config shapes.yaml --model.reward=aegpo.rewards.Shape",
            "model.reward: there is no 'Sh",
        ),
        ("--config shapes.yaml --model.policy.lora_rnk 4", "model.policy: aegpo.policies.StableD"),
        ("--config shapes.yaml --trainer.max_epohcs 3", "there is no option 'trainer.max_epoh"),
        ("--config shapes.yaml --seed 3", "there is no option 'seed'; did you mean 'seed_every"),
        ("--config shapes.yaml --ckpt=last", "there is no option 'ckpt'; did you mean 'ckpt_path'"),
        ("--config shapes.yaml --trainer.max_ep 3", "there is no option 'trainer.max_ep'; did y"),
        ("--config shapes.yaml --data.batch_si 3", "data: datamodules.PromptDataModule has no arg"),
        ("--config shapes.yaml --modell.x 3", "there is no option 'modell.x'; did you mean 'mod"),
        ("--config shapes.yaml plan", "give one command: fit or plan"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(folder: Path, typed: str, line: str) -> None:
    (folder / "shapes.yaml").write_text((CONFIGS / "shapes.yaml").read_text())
    found = told(*typed.split())
    assert found is not None and found.startswith(line), found


@pytest.mark.parametrize(
    "typed",
    [
        "--config x.yaml --config y.yaml",  # which chooses another reward
        "--config x.yaml --model.reward aegpo.rewards.ShapesMatch",
        "--config x.yaml --model other.Model",
        "--config x.yaml --help",
        "--config y.yaml --model.help=aegpo.rewards.Nothing --data.shares.single 0.4",
        "--config y.yaml --model.reward no_such_module.MyReward",  # might be a text
        "--config y.yaml --seed_everything 3 --ckpt_path last",
        "--config s3://there/x.yaml",
        "--config {trainer: {max_epochs: 1}}",
        "--config broken.yaml",
    ],
)
def test_what_is_not_certain_is_left_to_the_parser(folder: Path, typed: str) -> None:
    (folder / "x.yaml").write_text(REWARD)
    (folder / "y.yaml").write_text(REWARD.replace("Mach", "Match"))
    (folder / "broken.yaml").write_text("trainer: {max_steps: [}")
    assert told(*typed.replace("{trainer: {", "{trainer:{").split(" ", 5)) is None


def test_words_in_any_order_are_no_mistake_of_the_check(folder: Path) -> None:
    (folder / "x.yaml").write_text("model: {class_path: 3}\ntrainer:\n1: 2\n? {a: b}\n: 3\n")
    (folder / "y.yaml").write_text("trainer: {callbacks: {class_path: [3]}, callbacks+: 3}")
    words = ["", "--", "--=", "--init_args", "--model.init_args=3", "--config", "x.yaml", "y.yaml"]
    words += ["--config=y.yaml", "--trainer.callbacks+", "a.", ".a", "--a..b", "--model..x=3", "["]
    words += ["--model.reward.class_path", "aegpo.rewards.ShapesMatch", "--trainer", "--model"]
    choice = random.Random(0)
    assert told() is None
    for _ in range(2000):
        told(*choice.choices(words, k=choice.randint(1, 6)))


def test_aliases_of_aliases_come_to_an_end(folder: Path) -> None:
    (folder / "x.yaml").write_text(
        "model: &a {class_path: lightning_modules.AEGPOModule, init_args: {reward: *a, sde: *a}}"
    )
    assert told("--config", "x.yaml") is None


def test_no_shipped_config_is_refused() -> None:
    files = sorted(CONFIGS.rglob("*.yaml"))
    runs = [file for file in files if file.parent.name not in ("compare", "overlays")]
    assert len(runs) > 15
    for file in runs:
        assert told("--config", str(file)) is None, file
    for file in sorted((CONFIGS / "overlays").glob("*.yaml")):
        assert told("--config", str(CONFIGS / "shapes.yaml"), "--config", str(file)) is None, file
