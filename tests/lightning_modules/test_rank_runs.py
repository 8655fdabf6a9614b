"""Shipped configs and commands on two real ranks against one: tensors, logged numbers, costs.

One process runs the list of configs, two run it together; then each pair of runs is compared.
A pair costs 14 seconds of a core, so only some are run, and some of the commands after the
quickstart; with ALL_RANK_RUNS=1 in the environment all of them, or those that it names, between
commas.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from cli_runs import ROOT
from rank_pair import SHAPES, TWO, Command, fit, on_ranks
from rank_trace import assert_same_run
from tiny_flux import tiny_flux

RAGGED = ("--model.allocator.low", "2", "--model.allocator.high", "4")
FEW = ("--model.allocator.images_per_prompt", "4", "--model.selection.keep", "2")
EVEN = ("--model.allocator.images_per_prompt", "3")
TREES = ("--model.step_selector.top_k", "2")
RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: overlays, options; each has another callback, selector, allocator, weight or objective
    "quickstart": ((), (*FEW, "--trainer.callbacks+", "callbacks.DecisionLog")),  # below
    "aegpo": (("aegpo",), RAGGED),
    "running means": (("running_entropy", "reward_spread", "ema"), RAGGED),
    "shuffled_entropy": (("shuffled_entropy",), RAGGED),
    "within_category": (("within_category",), RAGGED),
    "rollout_entropy": (("rollout_entropy",), RAGGED),
    "sensitivity_weight": (("sensitivity_weight",), RAGGED),
    "aegpo_tree": (("aegpo_tree",), (*RAGGED[:-1], "8", "--model.allocator.low", "4", *TREES)),
    "aegpo_nft": (("aegpo_nft",), RAGGED),
    "diffusion_nft": (("diffusion_nft",), EVEN),
    "awm": (("awm",), EVEN),
    "agreement_nft": (("agreement_nft",), EVEN),
    "agreement_steps": (("agreement_steps",), EVEN),
    "flow_dppo": (("flow_dppo",), RAGGED),
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
OFTEN = ("running means", "flux1_dev")
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
    asked = os.environ.get("ALL_RANK_RUNS", "")
    wanted = asked.split(",") if asked else OFTEN
    return [name for name in names if asked == "1" or name in wanted]


def overlay(name: str) -> Path:
    return ROOT / f"configs/overlays/{name}.yaml"


def shapes_run(folder: Path, name: str, *ranks: str) -> Command:
    overlays, options = RUNS[name]
    below = (SHAPES, overlay("aegpo")) if overlays else (SHAPES,)
    return fit(folder / name, *options, *ranks, files=(*below, *map(overlay, overlays)))


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


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the runs on one process, and of those on two ranks."""
    return tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")


def test_kinds_of_training(two_folders: tuple[Path, Path]) -> None:
    one, two = two_folders
    runs = [name for name in chosen(RUNS) if name != "quickstart"]
    on_ranks(one, *(shapes_run(one, name) for name in runs), ranks=1)
    on_ranks(two, *(shapes_run(two, name, *TWO) for name in runs))
    assert_all_same(two_folders, runs)


LAST, LONG = ("--ckpt_path", "last"), ("--trainer.max_epochs", "2")
LOOKS = ("validate", "test", "predict")  # on as many processes as the trainer has
ALONE = {
    # what runs on one process: further options, and what it writes; two are in test_ranks too
    "sample": (("--prompts", "a red circle", "--out", "drawn"), "drawn/*.png"),
    "export": (("--out", "exported"), "exported/*.safetensors"),
    "signals": (
        ("--out", "read", "--prompts", "3", "--images", "2", "--trajectories", "2", "--rows", "8"),
        "read/*",
    ),
    "doctor": ((), "trace.json"),
}


def test_the_quickstart_and_all_that_follows_it(two_folders: tuple[Path, Path]) -> None:
    """Each command as it is typed, and a run that goes on with another number of ranks."""
    one, two = (folder / "quickstart" for folder in two_folders)
    everything = chosen(["quickstart"]) != []
    looks = LOOKS if everything else ("validate", "predict")
    alone_too = {name: ALONE[name] for name in (ALONE if everything else ("sample",))}
    _, alone = fit(one, *RUNS["quickstart"][1])
    _, shared = fit(two, *RUNS["quickstart"][1], *TWO)
    on_ranks(one, (one, alone), ranks=1)
    from_one, from_two = two_folders[1] / "from_one", two_folders[0] / "from_two"
    goes_on = two_folders[0] / "goes_on"  # as it began, on one process
    shutil.copytree(one, from_one)
    shutil.copytree(one, goes_on)
    after = [(two, [name, *shared[1:], *LAST]) for name in looks]
    after += [
        (two, [name, *shared[1:], *LAST, *options])
        for name, (options, _) in alone_too.items()
        if name != "doctor"
    ]
    # It trains, for which rank 0 would take the group of a command before it.
    first = [(two, ["doctor", *shared[1:]])] if "doctor" in alone_too else []
    on_two = on_ranks(two, *first, (two, shared), *after, (from_one, [*shared, *LAST, *LONG]))
    shutil.copytree(two, from_two)
    after = [(from_two, [name, *alone[1:], *LAST]) for name in looks]
    more = [(folder, [*alone, *LAST, *LONG]) for folder in (from_two, goes_on)]
    on_one = on_ranks(one, *after, *more, ranks=1)

    assert_same_run(one / "trace.json", two / "trace.json")
    spent = [
        torch.load(next(folder.rglob("last.ckpt")), weights_only=True)["aegpo"]["evaluations"]
        for folder in (one, two)
    ]
    assert spent[0] == spent[1]  # what a card publishes: the sum over the ranks
    grids = [sorted((folder / "runs/shapes/samples").glob("*.png")) for folder in (one, two)]
    assert [grid.name for grid in grids[0]] == [grid.name for grid in grids[1]]
    assert grids[0][0].read_bytes() == grids[1][0].read_bytes()  # of the base: the same images
    for resumed in (from_one, from_two):
        assert len(json.loads((resumed / "trace.json").read_text())) == 3  # of its own epoch
        assert_same_run(goes_on / "trace.json", resumed / "trace.json")

    shown = [scores(ended[0].output) for ended in (on_one, on_two)]
    wanted = {"val/shapes_match", *(["test/shapes_match"] if everything else [])}
    assert wanted <= dict(shown[0]).keys()
    assert [name for name, _ in shown[0]] == [name for name, _ in shown[1]]
    for (name, expected), (_, found) in zip(*shown, strict=True):
        assert found == pytest.approx(expected, rel=1e-5), name  # of the same checkpoint
    drawn = [next(folder.rglob("predictions")) for folder in (from_two, two)]
    assert len(list(drawn[0].glob("*.png"))) == 5
    assert folder_content(drawn[0]) == folder_content(drawn[1])

    for name, (_, written) in alone_too.items():
        assert list(two.glob(written)), name
        assert f"{name} runs on one process, not on 2 devices" in on_two[0].output, name
        assert f"{name} runs on one process; rank 1 leaves it to rank 0" in on_two[1].output, name


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def scores(output: str) -> list[tuple[str, float]]:
    """The metrics in the tables that Lightning prints."""
    found = re.findall(r"((?:val|test)/\w+)\s+\S?\s*(-?[\d.]+(?:e-?\d+)?)", output)
    return sorted((name, float(value)) for name, value in found)


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
