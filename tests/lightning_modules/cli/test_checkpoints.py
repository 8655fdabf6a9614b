"""What --ckpt_path asks for is found, or refused before anything is loaded or written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_run_files import CHECKPOINTS, LOGGED, content
from user_folder import refusal

from lightning_modules.cli.lightning_cli import main
from lightning_modules.commands.run_logs import read_scalars

GIVEN = ("--config", "base.yaml", "--config", "checkpoints.yaml", *LOGGED)


@pytest.fixture
def run(user_folder: Path) -> Path:
    """The log folder of a finished run of one epoch, two iterations."""
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS)
    main(["fit", *GIVEN])
    return user_folder / "runs/mine"


def test_a_command_that_finds_no_last_checkpoint_refuses_and_a_training_says_so(
    user_folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS)
    for command in ("validate", "test", "predict"):
        line = refusal(capsys, command, *GIVEN, "--ckpt_path", "last")
        assert "--ckpt_path last: there is no last checkpoint in " in line
        assert line.endswith("runs/mine/checkpoints; give the file of one")
    with caplog.at_level("INFO"):
        main(["fit", *GIVEN, "--ckpt_path", "last"])
    assert "runs/mine/checkpoints, so a new run begins" in caplog.text
    assert (user_folder / "runs/mine/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("", "there is no checkpoint ''; give the file of one"),
        ("Last", "there is no checkpoint Last; give the file of one; did you mean 'last'?"),
        ("nope.ckpt", "there is no checkpoint nope.ckpt; give the file of one"),
        ("runs/mine", "is a folder; give a file in it: runs/mine/checkpoints/last.ckpt"),
        ("runs/mine/checkpoints", "give a file in it: runs/mine/checkpoints/last.ckpt"),
        ("runs", "--ckpt_path runs is a folder; give the file of a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], asked: str, told: str
) -> None:
    before = content(run)
    for command in ("validate", "fit"):
        assert told in refusal(capsys, command, *GIVEN, "--ckpt_path", asked)
    assert content(run) == before


def test_a_finished_run_says_what_to_raise_and_writes_nothing(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = content(run)
    for limit, told in (
        ((), "trainer.max_epochs=1 is reached (1 are done); raise trainer.max_epochs"),
        (
            ("--trainer.max_epochs", "9", "--trainer.max_steps", "2"),
            "trainer.max_steps=2 is reached (2 are done); raise trainer.max_steps",
        ),
    ):
        with caplog.at_level("INFO"):
            main(["fit", *GIVEN, *limit, "--ckpt_path", "last"])
        assert told in caplog.text
    assert content(run) == before
    main(["fit", *GIVEN, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_refused_resume_leaves_the_run_as_it_was(run: Path) -> None:
    before = content(run)
    other = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    other["state_dict"] = {name: torch.zeros(7) for name in other["state_dict"]}
    torch.save(other, "other.ckpt")
    more = ("--trainer.max_epochs", "2", "--model.lr", "0.25")
    with pytest.raises(RuntimeError, match="size mismatch"):
        main(["fit", *GIVEN, *more, "--ckpt_path", "other.ckpt"])
    assert content(run) == before
    main(["fit", *GIVEN, *more, "--ckpt_path", "last"])
    assert "lr: 0.25" in (run / "config.yaml").read_text()


def test_a_copied_runs_config_does_not_load_the_other_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    line = refusal(capsys, "validate", "--config", str(copy / "config.yaml"), "--ckpt_path", "last")
    assert f"give --ckpt_path {copy}/checkpoints/last.ckpt" in line
    shutil.rmtree(run)
    line = refusal(capsys, "fit", "--config", str(copy / "config.yaml"), "--ckpt_path", "last")
    assert f"{copy}/checkpoints/last.ckpt lies beside the config" in line
    run.symlink_to(copy)  # behind a link it is the run itself
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last"])


@pytest.mark.parametrize("content", [("no", "dict"), {"hyper_parameters": 3}, [1]])
def test_what_is_no_checkpoint_is_told_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], content: object
) -> None:
    torch.save(content, "other.ckpt")
    for command in ("validate", "fit"):
        line = refusal(capsys, command, *GIVEN, "--ckpt_path", "other.ckpt")
        assert "is no checkpoint of a training; give one that aegpo fit wrote" in line


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_a_command_that_looks_at_a_run_writes_beside_its_log_and_a_resume_keeps_it(
    user_folder: Path, logger: str
) -> None:
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS)
    own = ("--trainer.logger", logger, "--trainer.logger.save_dir", "runs", *LOGGED)
    given = (*GIVEN, *own, "--trainer.log_every_n_steps", "1")
    main(["fit", *given])
    run = user_folder / "runs/mine"
    before = content(run)
    score = read_scalars(run, ["score"])["score"]
    assert len(score) == 1
    main(["validate", *given, "--ckpt_path", "last"])
    after = content(run)
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"validate"}
    assert read_scalars(run / "validate", ["score"])["score"]
    main(["fit", *given, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    resumed = read_scalars(run, ["score"])["score"]
    assert resumed.items() > score.items() and len(resumed) == 2
