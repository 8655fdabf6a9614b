"""Every bundled config builds through the real command line, and a short run logs what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_runs import (
    ROOT,
    assert_changes_what_it_names,
    build,
    configs,
    events,
    run,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aegpo.exploration import AllSteps, EntropyPeaks, FixedSteps, RandomSteps
from aegpo.noise import KeyedNoise
from callbacks.entropy_probe import EntropyProbe
from callbacks.prompt_reweighter import PromptReweighter
from lightning_modules.commands.compare.settings import Comparison

SHAPES = ROOT / "configs/shapes.yaml"
AEGPO = ROOT / "configs/overlays/aegpo.yaml"
OVERLAYS = sorted((ROOT / "configs/overlays").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMPARISONS = sorted((ROOT / "configs/compare").glob("*.yaml"))


def raw_callbacks(file: Path) -> list[str]:
    trainer = yaml.safe_load(file.read_text()).get("trainer", {})
    listed = trainer.get("callbacks", []) + trainer.get("callbacks+", [])
    return [callback["class_path"].rpartition(".")[2] for callback in listed]


def test_the_bundled_configs_are_found() -> None:
    assert {"shapes", "shapes_pretrain", "shapes_vae"} <= {file.stem for file in CONFIGS}
    assert len(OVERLAYS) >= 8
    assert {"shapes", "study", "study_signals"} <= {file.stem for file in COMPARISONS}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_builds(folder: Path, file: Path) -> None:
    cli = build(*configs(file))
    raw = yaml.safe_load(file.read_text())
    assert type(cli.model).__name__ == raw["model"]["class_path"].rpartition(".")[2]
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert set(raw_callbacks(file)) <= set(names)
    assert list(folder.iterdir()) == []  # building writes nothing


@pytest.mark.parametrize("name", ["adamw_8bit", "ddp"])
def test_an_overlay_that_trains_elsewhere_changes_what_it_names(folder: Path, name: str) -> None:
    """The others do so in test_trainings, which cannot train these."""
    file = ROOT / f"configs/overlays/{name}.yaml"
    # Without GPUs two processes are built on the processor; the file's values are looked at below.
    devices = ["--trainer.accelerator=cpu", "--trainer.devices=2"] if name == "ddp" else []
    cli = build(*configs(SHAPES, file), *devices)
    assert_changes_what_it_names(file, build(*configs(SHAPES)), cli)


@pytest.mark.parametrize("file", COMPARISONS, ids=lambda file: file.stem)
def test_every_method_of_a_comparison_differs(folder: Path, file: Path) -> None:
    """Those of one overlay and of several are built in test_trainings, where most of them train."""
    comparison = Comparison(**yaml.safe_load(file.read_text()))
    comparison.validate()
    assert len({repr(layers) for layers in comparison.methods.values()}) == len(comparison.methods)


def test_no_two_overlays_say_the_same() -> None:
    said = {repr(yaml.safe_load(file.read_text())) for file in OVERLAYS}
    assert len(said) == len(OVERLAYS)


def overlay(name: str) -> Any:
    return build(*configs(SHAPES, AEGPO, ROOT / f"configs/overlays/{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "selector"),
    [("all_steps", AllSteps), ("fixed_steps", FixedSteps), ("random_steps", RandomSteps)],
)
def test_the_controls_of_the_local_loop(folder: Path, name: str, selector: type) -> None:
    base, control = overlay("aegpo").model, overlay(name).model
    assert type(base.step_selector) is EntropyPeaks
    assert type(control.step_selector) is selector
    index = torch.arange(3)
    ours = base.step_selector(None, KeyedNoise(0), index, base.num_steps).stochastic.sum()
    theirs = control.step_selector(None, KeyedNoise(0), index, control.num_steps).stochastic.sum()
    # A control explores as often as what it is set against; all steps are all but the last.
    assert int(theirs) == (3 * (base.num_steps - 1) if name == "all_steps" else int(ours))
    assert control.step_selector.eta == base.step_selector.eta


def test_each_loop_is_off_where_its_overlay_says_so(folder: Path) -> None:
    everything = [type(callback) for callback in overlay("aegpo").trainer.callbacks]
    for name in ("grpo", "no_probe"):
        left = [type(callback) for callback in overlay(name).trainer.callbacks]
        assert left == [one for one in everything if one not in (EntropyProbe, PromptReweighter)]
        assert len(left) == len(everything) - 2
    assert overlay("aegpo").datamodule.sampler.alpha > 0
    for name in ("grpo", "no_probe", "no_reweighting"):
        assert overlay(name).datamodule.sampler.alpha == 0
    for name in ("grpo", "no_allocation"):
        assert type(overlay(name).model.allocator).__name__ == "UniformAllocator"


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_ddp_and_fsdp2_ask_for_all_gpus_of_the_machine(name: str) -> None:
    trainer = yaml.safe_load((ROOT / f"configs/overlays/{name}.yaml").read_text())["trainer"]
    assert trainer == {"accelerator": "gpu", "devices": "auto", "strategy": name}


# A run of one iteration through the console entry

SMALL = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *("--data.batches_per_epoch", "1", "--data.batch_size", "2", "--data.val_images", "8"),
]
MINIATURE = [
    *configs(SHAPES, AEGPO),  # whose objective logs most
    *SMALL,
    *("--trainer.check_val_every_n_epoch", "1"),
    *("--model.allocator", "aegpo.allocation.MedianSplitAllocator"),
    *("--model.allocator.low", "2", "--model.allocator.high", "4"),
]

MY_MODULE = '''
from aegpo.rewards import Reward


class MyReward(Reward):
    """How red an image is."""

    def __call__(self, images, prompts, metadata):
        return images[:, 0].flatten(1).mean(1)
'''


def tags(accumulator: EventAccumulator) -> dict[str, set[str]]:
    found = accumulator.Tags()
    return {
        "scalars": set(found["scalars"]),
        "images": set(found["images"]),
        "histograms": set(found["histograms"]),
        "texts": {name.removesuffix("/text_summary") for name in found["tensors"]},
    }


def documented() -> dict[str, re.Pattern[str]]:
    """The tags of docs/logging.md; a part in angle brackets stands for anything."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/logging.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return {
        name: re.compile("".join("[^/]+" if p[0] == "<" else re.escape(p) for p in split(name)))
        for name in names
    }


def split(name: str) -> list[str]:
    return [part for part in re.split(r"(<[^>]+>)", name) if part]


def test_runs_log_what_the_documentation_lists(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my_module.py").write_text(MY_MODULE)

    run(monkeypatch, "fit", *MINIATURE)
    printed = capsys.readouterr().out
    assert "held-out scores (val) after 0 iterations" in printed
    assert "held-out scores (val) after 1 iterations" in printed
    log = events(folder / "runs/aegpo")
    plain = tags(log)
    assert plain["images"] == {"entropy/curve", "entropy/by_layer", "samples/held_out"}
    assert plain["histograms"] == {"entropy/delta", "allocation/images", "sampler/weights"}
    layout = "custom_scalars__config__"  # TensorBoard's page of charts
    assert plain["texts"] == {"entropy/prompts", "allocation/prompts", layout}
    assert sorted(path.name for path in (folder / "runs/aegpo/samples").iterdir()) == [
        "held_out_00000.png",
        "held_out_00001.png",
    ]
    # The x-axis is the iteration: the base at 0, everything after the first iteration at 1.
    assert [event.step for event in log.Images("samples/held_out")] == [0, 1]
    assert [event.step for event in log.Scalars("val/shapes_judge")] == [0, 1]
    assert [event.step for event in log.Scalars("reward/mean")] == [1]
    parts = ("rollout", "probe", "reference", "update")
    spent = [log.Scalars(f"cost/{part}")[0].value for part in parts]
    assert log.Scalars("cost/evaluations")[0].value == sum(spent) > 0
    assert spent[:2] == [6 * 10, 2 * 10]  # images and prompts, times steps
    assert log.Scalars("ratio/first_max_dev")[0].value < 1e-6

    # A folder below the run's own has the same score of the trained model.
    run(monkeypatch, "validate", *MINIATURE, "--ckpt_path", "last")
    (score,) = events(folder / "runs/aegpo/validate").Scalars("val/shapes_judge")
    assert score.step == 1
    trained = events(folder / "runs/aegpo").Scalars("val/shapes_judge")[-1]
    assert score.value == pytest.approx(trained.value, abs=1e-6)

    # A user's own reward in a sum, a KL, steps by agreement and half precision log other rows.
    extra = {
        "trainer": {"precision": "bf16-mixed", "logger": {"init_args": {"name": "extra"}}},
        "model": {
            "init_args": {
                "kl_coeff": 0.1,
                "step_selector": {"class_path": "aegpo.exploration.AgreementSteps"},
                "reward": {
                    "class_path": "aegpo.rewards.WeightedSum",
                    "init_args": {
                        "rewards": [
                            {"class_path": "my_module.MyReward"},
                            {"class_path": "aegpo.rewards.JpegCompressibility"},
                        ]
                    },
                },
            }
        },
    }
    (folder / "extra.yaml").write_text(yaml.safe_dump(extra))
    (folder / "runs/aegpo").rename(folder / "runs/first")
    run(monkeypatch, "fit", *MINIATURE, "--config", "extra.yaml")
    run(monkeypatch, "test", *MINIATURE, "--config", "extra.yaml", "--ckpt_path", "last")
    more = tags(events(folder / "runs/extra"))
    tested = tags(events(folder / "runs/extra/test"))
    assert {"reward/part/my_reward", "update/kl", "ratio/rollout_max_dev"} <= more["scalars"]

    # Levels by agreement, chosen images, previews and a prompt's history log those of their own.
    third = {
        "trainer": {
            "logger": {"init_args": {"name": "third"}},
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "callbacks+": [
                {
                    "class_path": "callbacks.PromptHistory",
                    "init_args": {"rule": {"class_path": "aegpo.allocation.SkipSilent"}},
                }
            ],
        },
        "model": {
            "init_args": {
                "num_steps": 5,
                "selection": {"class_path": "aegpo.selection.Extremes", "init_args": {"keep": 2}},
                "previews": {"class_path": "aegpo.selection.Previews"},
                "warmup": None,
            }
        },
    }
    (folder / "third.yaml").write_text(yaml.safe_dump(third))
    overlay = configs(ROOT / "configs/overlays/agreement_nft.yaml")
    run(monkeypatch, "fit", *configs(SHAPES), *overlay, "--config", "third.yaml", *SMALL)
    forward = tags(events(folder / "runs/third"))

    # The first run's row among TensorBoard's HParams.
    row = tags(events(folder / "runs/first/hparams"))["scalars"]

    logged = set().union(*plain.values(), *more.values(), *tested.values(), *forward.values(), row)
    table = documented()
    bookkeeping = {"epoch", "hp_metric", layout}  # Lightning's and TensorBoard's own
    unknown = [
        name
        for name in logged - bookkeeping
        if not any(pattern.fullmatch(name) for pattern in table.values())
    ]
    assert not unknown, "docs/logging.md does not list these"
    missing = [
        name for name, pattern in table.items() if not any(pattern.fullmatch(tag) for tag in logged)
    ]
    assert not missing, "docs/logging.md lists what no run logs"


def test_a_reward_from_the_current_folder_is_trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "my_module.py").write_text(MY_MODULE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(folder))])
    run(monkeypatch, "fit", *MINIATURE, "--model.init_args.reward", "my_module.MyReward")
    log = events(folder / "runs/aegpo")
    assert 0 < log.Scalars("reward/mean")[0].value < 1
    assert {"val/my_reward", "val/shapes_judge"} <= tags(log)["scalars"]
