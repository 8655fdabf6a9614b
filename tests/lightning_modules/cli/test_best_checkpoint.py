"""`--ckpt_path best` in a process that did not train."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from user_folder import refusal

from lightning_modules.cli.lightning_cli import main

LOGGED = ("--trainer.logger.name", "mine", "--trainer.logger.version", "")
CHECKPOINTS = """
trainer:
  callbacks:
    - class_path: callbacks.RolloutCheckpoint
      init_args: {dirpath: runs/mine/checkpoints, monitor: MONITOR}
"""
GIVEN = ("--config", "base.yaml", "--config", "checkpoints.yaml", *LOGGED)


def train(folder: Path, monitor: str) -> None:
    (folder / "checkpoints.yaml").write_text(CHECKPOINTS.replace("MONITOR", monitor))
    main(["fit", *GIVEN, "--trainer.max_epochs", "2"])


def test_the_best_is_found_by_every_command(user_folder: Path) -> None:
    train(user_folder, "score")
    folder = user_folder / "runs/mine/checkpoints"
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0  # the score falls in this training: the last one is not the best
    import user_module

    for command in ("validate", "fit"):
        epochs = ("--trainer.max_epochs", "2")
        main([command, *GIVEN, *epochs, "--ckpt_path", "best", "--trainer.logger", "false"])
        module = user_module.Module.seen
        if command == "validate":
            assert torch.equal(module.layer1.weight, best["state_dict"]["layer1.weight"])
        else:
            assert module.trainer.global_step == 4  # of which the checkpoint had two
    # A run that was moved: the checkpoint names the file where it was.
    moved = user_folder / "elsewhere"
    shutil.move(folder, moved)
    text = (user_folder / "checkpoints.yaml").read_text()
    (user_folder / "checkpoints.yaml").write_text(text.replace("runs/mine/checkpoints", str(moved)))
    main(["validate", *GIVEN, "--ckpt_path", "best", "--trainer.logger", "false"])
    assert torch.equal(user_module.Module.seen.layer1.weight, best["state_dict"]["layer1.weight"])


def test_without_a_best_one_line_says_so(
    user_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS.replace("MONITOR", "null"))
    asked = ("validate", *GIVEN, "--ckpt_path", "best")
    assert "there is no last checkpoint in" in refusal(capsys, *asked)
    train(user_folder, "null")
    said = refusal(capsys, *asked)
    assert "last.ckpt knows of no best checkpoint" in said and "has a monitor" in said
    bare = ("validate", "--config", "base.yaml", *LOGGED, "--ckpt_path", "best")
    assert "no callback of this config names a folder" in refusal(capsys, *bare)
    (user_folder / "runs/mine/checkpoints/last.ckpt").write_text("text")
    assert "is damaged or no checkpoint" in refusal(capsys, *asked)


def test_a_best_that_was_deleted_is_named(
    user_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(user_folder, "score")
    best = user_folder / "runs/mine/checkpoints/best.ckpt"
    best.unlink()
    said = refusal(capsys, "validate", *GIVEN, "--ckpt_path", "best")
    assert f"names {best}, which is not there" in said
