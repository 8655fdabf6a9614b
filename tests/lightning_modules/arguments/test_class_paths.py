"""An old class path gets one line that names the new one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from user_folder import refusal

from lightning_modules.arguments.class_paths import present_path
from lightning_modules.arguments.sources import public_names
from lightning_modules.commands.check_reward import main as check_reward

ROOT = Path(__file__).parents[3]
MOVED = {
    "aegpo.losses.EqualWeight": "aegpo.objectives.EqualWeight",
    "aegpo.losses.RatioNorm": "aegpo.objectives.RatioNorm",
    "aegpo.losses.SensitivityWeight": "aegpo.objectives.SensitivityWeight",
    "aegpo.losses.StdWeight": "aegpo.objectives.StdWeight",
    "aegpo.tree_advantages.DepthCredit": "aegpo.objectives.DepthCredit",
    "aegpo.tree_advantages.LeafCredit": "aegpo.objectives.LeafCredit",
    "aegpo.pruning.DepthPruning": "aegpo.objectives.DepthPruning",
    "aegpo.pruning.RandomStepPruning": "aegpo.objectives.RandomStepPruning",
    "aegpo.pruning.WidthPruning": "aegpo.objectives.WidthPruning",
    "aegpo.advantage_controls.ShuffledRewards": "aegpo.advantages.ShuffledRewards",
    "aegpo.advantages_by_reward.PerReward": "aegpo.advantages.PerReward",
    "aegpo.shapes.ShapesJudge": "aegpo.rewards.ShapesJudge",
    "aegpo.shapes.ShapesMatch": "aegpo.rewards.ShapesMatch",
    "aegpo.rewards.pickscore.PickScore": "aegpo.rewards.PickScore",
    "aegpo.policies.flux.Flux": "aegpo.policies.Flux",
    "aegpo.splits.FixedSplits": "aegpo.exploration.FixedSplits",
    "lightning_modules.trainer.AEGPOTrainer": "lightning_modules.AEGPOTrainer",
}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_class_is_found_by_its_name(old: str, new: str) -> None:
    assert present_path(old) == new
    assert present_path(new) is None


def test_what_is_not_ours_or_nowhere_has_no_other_path() -> None:
    for path in ("my_module.StdWeight", "aegpo.losses.StdWieght", "StdWeight", "torch.optim.Adam"):
        assert present_path(path) is None


def test_every_public_name_is_public_once_and_can_be_imported() -> None:
    names = public_names()
    assert len(names) > 100
    for name, face in names.items():
        assert getattr(import_module(face), name) is not None


@pytest.mark.parametrize(
    ("key", "old"),
    [
        ("reward", "aegpo.shapes.ShapesMatch"),
        ("transition_weight", "aegpo.losses.StdWeight"),  # a class or null
        ("policy", "aegpo.policies.flux.Flux"),  # behind a function that builds it
    ],
)
def test_an_old_path_in_a_config_is_answered_with_the_new_one(
    folder: Path, capsys: pytest.CaptureFixture[str], key: str, old: str
) -> None:
    overlay = {"model": {"init_args": {key: {"class_path": old}}}}
    (folder / "old.yaml").write_text(yaml.safe_dump(overlay))
    shapes = str(ROOT / "configs/shapes.yaml")
    line = refusal(capsys, "fit", "--config", shapes, "--config", "old.yaml")
    assert line == f"error: model.{key}: {old} is now {MOVED[old]}"


def test_an_old_path_on_the_command_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check_reward(["aegpo.shapes.ShapesJudge"])
    line = "error: reward: aegpo.shapes.ShapesJudge is now aegpo.rewards.ShapesJudge\n"
    assert capsys.readouterr().err == line
