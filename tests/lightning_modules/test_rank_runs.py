"""Shipped configs on two real ranks against one: tensors, logged numbers, costs.

One process runs the list of configs, two run it together; then each pair of runs is compared.
A pair costs 14 seconds of a core, so only some are run; with ALL_RANK_RUNS in the environment, all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from cli_runs import ROOT
from rank_pair import SHAPES, TWO, Command, fit, on_ranks
from rank_trace import assert_same_run
from tiny_flux import tiny_flux

RAGGED = ("--model.allocator.low", "2", "--model.allocator.high", "4")
EVEN = ("--model.allocator.images_per_prompt", "3")
TREES = ("--model.step_selector.top_k", "2")
RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: overlays, options; each has another callback, selector, allocator, weight or objective
    "quickstart": ((), (*RAGGED, "--trainer.callbacks+", "callbacks.DecisionLog")),
    "running means": (("running_entropy", "reward_spread", "ema"), RAGGED),
    "shuffled_entropy": (("shuffled_entropy",), RAGGED),
    "within_category": (("within_category",), RAGGED),
    "rollout_entropy": (("rollout_entropy",), RAGGED),
    "sensitivity_weight": (("sensitivity_weight",), RAGGED),
    "aegpo_tree": (("aegpo_tree",), (*RAGGED[:-1], "8", "--model.allocator.low", "4", *TREES)),
    "aegpo_nft": (("aegpo_nft",), RAGGED),
    "diffusion_nft": (("diffusion_nft",), EVEN),
    "grpo": (("grpo",), EVEN),
    "dance_grpo": (("dance_grpo",), EVEN),
    "e_grpo": (("e_grpo",), EVEN),
    "flow_grpo": (("flow_grpo",), EVEN),
    "flow_grpo_fast": (("flow_grpo_fast",), (*EVEN, "--model.step_selector.end", "4")),
    "grpo_guard": (("grpo_guard",), EVEN),
    "mix_grpo": (("mix_grpo",), EVEN),
    "tempflow_grpo": (("tempflow_grpo",), EVEN),
    "branch_grpo": (
        ("branch_grpo",),
        (
            *("--model.allocator.images_per_prompt", "4", "--model.step_selector.splits", "[0,2]"),
            *("--model.step_selector.factors", "[2,2]"),
        ),
    ),
    "oracle_steps": (("oracle_steps",), EVEN),
    "oracle_tree": (("oracle_tree",), ("--model.allocator.images_per_prompt", "4", *TREES)),
}
OFTEN = ("quickstart", "running means", "aegpo_tree", "aegpo_nft", "flux1_dev", "sd15")
MODELS = {
    # pixels, reward
    "sd35_medium": (16, "pickscore"),
    "flux1_dev": (16, "pickscore"),
    "sdxl": (32, "aesthetic"),
    "sd15": (32, "aesthetic"),
}
REWARDS = {"pickscore": ("model", "processor"), "aesthetic": ("weights", "clip")}
"""Arguments that name a network. A size in bytes jumps with one bit of a pixel: no JPEG here."""
ON_CPU = """
trainer:
  accelerator: cpu
  devices: 1
  strategy: auto
  precision: 32-true
model:
  init_args:
    allocator: {init_args: {low: 2, high: 4}}
    num_steps: 6
    evaluation_steps: 2
    evaluation_rewards: [{class_path: aegpo.rewards.JpegIncompressibility}]
    policy:
      init_args: {dtype: float32, lora_rank: 2}
"""


def chosen(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in OFTEN or "ALL_RANK_RUNS" in os.environ]


def overlay(name: str) -> Path:
    return ROOT / f"configs/overlays/{name}.yaml"


def shapes_run(folder: Path, name: str, *ranks: str) -> Command:
    overlays, options = RUNS[name]
    return fit(folder / name, *options, *ranks, files=(SHAPES, *map(overlay, overlays)))


def model_run(folder: Path, name: str, pretrained: Path, clip: Path, *ranks: str) -> Command:
    """The recipe of a model for eight GPUs, on CPUs and a tiny pipeline of its class."""
    pixels, reward = MODELS[name]
    files = [ROOT / f"configs/{part}.yaml" for part in (f"models/{name}", f"rewards/{reward}")]
    on_cpu = folder / "on_cpu.yaml"
    on_cpu.write_text(ON_CPU)
    options = ["--model.policy.pretrained", str(pretrained)]
    options += ["--model.policy.resolution", str(pixels)]
    for argument in REWARDS[reward]:
        options += [f"--model.reward.{argument}", str(clip)]
    if name in ("sd35_medium", "flux1_dev"):
        options += ["--model.policy.max_sequence_length", "8"]
    hardware = ROOT / "configs/hardware/8x80gb.yaml"
    return fit(folder / name, *options, *ranks, files=(*files, hardware, on_cpu))


def predict(folder: Path, *ranks: str) -> Command:
    """The command that draws and scores the base's held-out images."""
    place, arguments = fit(folder / "predict", *ranks, files=(SHAPES,))
    return place, ["predict", *arguments[1:]]


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the runs on one process, and of those on two ranks."""
    return tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")


def test_kinds_of_training(two_folders: tuple[Path, Path]) -> None:
    one, two = two_folders
    runs = chosen(RUNS)
    on_ranks(one, *(shapes_run(one, name) for name in runs), predict(one), ranks=1)
    on_ranks(two, *(shapes_run(two, name, *TWO) for name in runs), predict(two, *TWO))
    assert_all_same(two_folders, runs)
    grids = [sorted((folder / "quickstart").rglob("samples/*.png")) for folder in (one, two)]
    assert [grid.name for grid in grids[0]] == [grid.name for grid in grids[1]]
    assert grids[0][0].read_bytes() == grids[1][0].read_bytes()  # of the base: the same images
    outs = [next((folder / "predict").rglob("predictions")) for folder in (one, two)]
    assert len(list(outs[0].glob("*.png"))) == 5
    assert folder_content(outs[0]) == folder_content(outs[1])


def test_models(
    two_folders: tuple[Path, Path],
    tiny_sd3_dual_folder: Path,
    tiny_sd15_folder: Path,
    tiny_sdxl_folder: Path,
    tiny_clip: Path,
) -> None:
    one, two = two_folders
    tiny_flux().save_pretrained(one / "flux")
    pretrained = {
        "sd35_medium": tiny_sd3_dual_folder,
        "flux1_dev": one / "flux",
        "sdxl": tiny_sdxl_folder,
        "sd15": tiny_sd15_folder,
    }
    given = {name: (pretrained[name], tiny_clip) for name in MODELS}
    models = chosen(MODELS)
    on_ranks(one, *(model_run(one, name, *given[name]) for name in models), ranks=1)
    on_ranks(two, *(model_run(two, name, *given[name], *TWO) for name in models))
    assert_all_same(two_folders, models)


def assert_all_same(folders: tuple[Path, Path], names: list[str]) -> None:
    """Compare the runs of two folders in pairs, and name all that differ."""
    one, two = folders
    wrong = []
    for name in names:
        try:
            assert_same_run(one / name / "trace.json", two / name / "trace.json")
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
