"""Overlays, and methods of every comparison, train one iteration on the Shapes world.

Of overlays that differ by a class or by what they leave out one trains. A method of a comparison is
overlays and a line more; those whose line is in no overlay train. All others are built, and train
too with ALL_COMBINATIONS in the environment.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_runs import ROOT, Kept, assert_changes_what_it_names, build, configs

from lightning_modules.commands.compare.settings import Comparison

SHAPES = ROOT / "configs/shapes.yaml"
AEGPO = ROOT / "configs/overlays/aegpo.yaml"
"""The recipe of the policy gradient on Shapes, over which the methods are laid."""
OVERLAYS = sorted((ROOT / "configs/overlays").glob("*.yaml"))
SHRUNKEN = [
    *("--data.batch_size=2", "--data.batches_per_epoch=1", "--data.shares=null"),
    *(
        "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=0",
        "--trainer.num_sanity_val_steps=0",
    ),
    *("--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=log"),
    *("--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"),
]
"""Two prompts, one iteration; steps, groups and parts are those of the files."""
NOT_HERE = {
    "ddp": "it wants GPUs; two ranks run in test_rank_runs",
    "adamw_8bit": "bitsandbytes' optimizers want a GPU",
}


ALIKE = {
    # of one kind with another overlay, which trains: shuffled_entropy, within_category, no_probe,
    # branch_grpo and mix_grpo; the trials of oracle_steps train in test_step_spread
    *("inverted_entropy", "random_entropy", "swapped_entropy", "category_only"),
    *("no_reweighting", "only_allocation", "only_exploration", "only_reweighting"),
    *("fixed_steps", "random_steps", "random_allocation", "no_allocation"),
    *("branch_grpo_mix", "flow_grpo_fast", "oracle_steps"),
}
"""Overlays that are built, and train with ALL_COMBINATIONS only."""
OFTEN = {
    "all_layers",
    "delta_of_4",
    "nft_late_levels",
    "per_prompt",
    "proportional",
    "running_threshold",
    "skip_silent",
    "tree_leaf_credit",
}
"""A recorder, trajectories, a window for NFT, a scope, an allocator, a threshold, a credit;
draws by earlier visits."""


def comparisons() -> dict[str, Comparison]:
    files = sorted((ROOT / "configs/compare").glob("*.yaml"))
    return {file.stem: Comparison(**yaml.safe_load(file.read_text())) for file in files}


def methods() -> list[tuple[str, str]]:
    """Those methods that are more than one overlay, each once."""
    found: dict[str, tuple[str, str]] = {}
    for name, comparison in comparisons().items():
        for method, layers in comparison.methods.items():
            if len(layers) > 1 or any(not isinstance(one, str) for one in layers):
                found.setdefault(repr(layers), (name, method))
    return list(found.values())


def shrunken(*arguments: str) -> list[str]:
    # Trials are of four prompts, and among eight some say something.
    for name, prompts in (("oracle_steps", 4), ("shapes_dead_groups", 8)):
        if any(name in argument for argument in arguments):
            return [*SHRUNKEN, f"--data.batch_size={prompts}"]
    return SHRUNKEN


def fit(*arguments: str) -> Any:
    return Kept(["fit", *arguments, *shrunken(*arguments)])


def require_trained(cli: Any) -> None:
    """One iteration was drawn, scored, compared, and moved the weights."""
    module, logged = cli.model, cli.trainer.callback_metrics
    assert module.iteration == 1
    sizes = module.last.group_sizes
    images = module.allocator.images_per_prompt
    assert images == 12 or (images == 16 and module.selection.selects)  # of which 8
    assert len(module.last.tree) == int(sizes.sum()) == images * cli.datamodule.batch_size
    assert bool(module.last.rewards.isfinite().all())
    assert logged["update/transitions"] > 0
    assert all(math.isfinite(float(value)) for key, value in logged.items() if "update" in key)
    assert float(logged["update/gradient_norm"]) > 0
    moved = [p.abs().sum() for n, p in module.policy.named_parameters() if "lora_B" in n]
    assert moved and float(torch.stack(moved).sum()) > 0  # they begin at zero
    counts = module.policy.evaluations.counts
    assert counts["rollout"] > 0 and counts["update"] > 0


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_an_overlay_trains_and_changes_what_it_names(file: Path, folder: Path) -> None:
    if file.stem in NOT_HERE:
        pytest.skip(NOT_HERE[file.stem])
    below = [SHAPES] if file == AEGPO else [SHAPES, AEGPO]
    files = configs(*below, file)
    trains = file.stem not in ALIKE or "ALL_COMBINATIONS" in os.environ
    cli = fit(*files) if trains else build(*files, *shrunken(*files))
    if trains:
        require_trained(cli)
    base = build(*configs(*below), *shrunken(*files))
    assert_changes_what_it_names(file, base, cli)
    raw = yaml.safe_load(file.read_text())
    gone = set(raw.get("trainer", {}).get("without_callbacks", []))
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert not gone & names
    if trains and file.stem != "rollout_entropy":  # which reads the images that are drawn anyway
        probes = "EntropyProbe" in names or file.stem == "oracle_steps"
        assert (cli.model.policy.evaluations.counts["probe"] > 0) == probes


@pytest.mark.parametrize(("name", "method"), methods(), ids=lambda one: one)
def test_a_method_of_a_comparison(name: str, method: str, folder: Path) -> None:
    comparison = dataclasses.replace(comparisons()[name], out=str(folder / "out"))
    arguments = comparison.arguments(ROOT / "configs/compare")[method]
    if method in OFTEN or "ALL_COMBINATIONS" in os.environ:
        require_trained(fit(*arguments))
    else:
        build(*arguments, *shrunken(*arguments))


def test_every_other_method_is_an_overlay_alone() -> None:
    single = {
        layers[0]
        for comparison in comparisons().values()
        for layers in comparison.methods.values()
        if len(layers) == 1 and isinstance(layers[0], str)
    }
    assert {Path(one).name for one in single} <= {file.name for file in OVERLAYS}
