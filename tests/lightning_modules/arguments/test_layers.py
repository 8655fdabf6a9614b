"""Configs laid over each other: what would be lost in silence gets one line."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import yaml
from user_folder import refusal

from lightning_modules.arguments.layers import contradicting_layers

ROOT = Path(__file__).parents[3]
BASE = str(ROOT / "configs/shapes.yaml")


def overlay(name: str) -> str:
    return str(ROOT / f"configs/overlays/{name}.yaml")


@pytest.mark.parametrize("name", ["ema", "flow_grpo", "ddp"])
def test_an_overlay_before_what_it_is_laid_over(name: str) -> None:
    line = contradicting_layers([overlay(name), BASE])
    assert line is not None and "comes before" in line and f"give {BASE} first" in line
    assert contradicting_layers([BASE, overlay(name)]) is None


@pytest.mark.parametrize("name", ["ema", "flow_grpo", "no_probe", "diffusion_nft"])
def test_a_recipe_lies_below_methods(name: str) -> None:
    """aegpo.yaml says every part; what is laid over it changes some on purpose."""
    recipe = overlay("aegpo")
    assert contradicting_layers([BASE, recipe, overlay(name)]) is None
    line = contradicting_layers([BASE, overlay(name), recipe])
    assert line is not None and "comes before" in line and f"give {recipe} first" in line


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("flow_grpo", "mix_grpo", "model.step_selector is AllSteps in the one and SlidingWindow"),
        ("flow_grpo", "only_reweighting", "are two methods"),
        ("dance_grpo", "diffusion_nft", "are two methods"),
        ("only_exploration", "only_allocation", "are two methods"),
        ("no_allocation", "only_allocation", "model.allocator is UniformAllocator"),
        ("no_probe", "only_exploration", "takes away callbacks.EntropyProbe, which EntropyPeaks"),
        ("no_probe", "aegpo_tree", "takes away callbacks.EntropyProbe"),
    ],
)
def test_two_overlays_that_exclude_each_other(first: str, second: str, said: str) -> None:
    for pair in ((first, second), (second, first)):
        line = contradicting_layers([BASE, *map(overlay, pair)])
        assert line is not None and all(f"{name}.yaml" in line for name in pair)
        assert "give one of them" in line
    line = contradicting_layers([BASE, overlay(first), overlay(second)])
    assert line is not None and said in line


def test_what_goes_together(tmp_path: Path) -> None:
    methods = [
        file.stem
        for file in (ROOT / "configs/overlays").glob("*.yaml")
        if "step_selector" in file.read_text()
    ]
    for name in methods:
        for other in ("ema", "ddp", "adamw_8bit", "shapes_clip_reward"):
            assert contradicting_layers([BASE, overlay(name), overlay(other)]) is None
    controls = ("no_reweighting", "no_allocation", "fixed_steps", "shuffled_rewards")
    for pair in combinations(controls, 2):
        assert contradicting_layers([BASE, *map(overlay, pair)]) is None
    # A file of one's own that changes a method's part does so on purpose.
    own = tmp_path / "own.yaml"
    own.write_text(
        "model: {init_args: {step_selector: {class_path: aegpo.exploration.AllSteps}}}\n"
    )
    assert contradicting_layers([BASE, overlay("mix_grpo"), str(own)]) is None
    # What is no YAML, or is not there, is the parser's to say.
    (tmp_path / "broken.yaml").write_text("a: [")
    assert contradicting_layers([str(tmp_path / "broken.yaml"), "nowhere.yaml", BASE]) is None


def test_every_comparison_is_free_of_contradictions() -> None:
    for file in (ROOT / "configs/compare").glob("*.yaml"):
        for files in yaml.safe_load(file.read_text())["methods"].values():
            named = [str(file.parent / one) for one in files if isinstance(one, str)]
            assert contradicting_layers([BASE, *named]) is None


def test_the_command_line_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--config", overlay("ema"), "--config", BASE]
    assert "comes before" in refusal(capsys, "fit", *files)
    files = ["--config", BASE, "--config", overlay("flow_grpo"), "--config", overlay("mix_grpo")]
    assert "are two methods" in refusal(capsys, "plan", *files)
