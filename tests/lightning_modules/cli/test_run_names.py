"""Each run has a name, and with it a folder of its own, which all that it writes goes into."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from killed_runs import write_config
from rank_pair import TWO, on_ranks
from test_run_files import content
from user_folder import refusal

from lightning_modules.cli.lightning_cli import main
from lightning_modules.cli.run_folder import reservation

RUN = """
trainer:
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: runs, name: mine, version: ""}
  callbacks:
    - {class_path: callbacks.RolloutCheckpoint}
"""
GIVEN = ("--config", "base.yaml", "--config", "run.yaml")
WRITTEN = {"config.yaml", "environment.yaml", "hparams.yaml", "checkpoints"}


@pytest.fixture
def named(user_folder: Path) -> Path:
    """The folder of all runs of a config that names its own `mine`."""
    (user_folder / "run.yaml").write_text(RUN)
    return user_folder / "runs"


def folders(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.iterdir())


def last_step(run: Path) -> int:
    step: int = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    return step


def test_a_second_training_gets_the_next_number_and_leaves_the_first_alone(
    named: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", *GIVEN])
    first = content(named / "mine")
    assert {name.split("/")[0] for name in first} >= WRITTEN
    with caplog.at_level("INFO"):
        main(["fit", *GIVEN])
    assert "runs/mine holds a run already, so this one is runs/mine-2" in caplog.text
    main(["fit", *GIVEN])
    assert folders(named) == ["mine", "mine-2", "mine-3"]
    assert content(named / "mine") == first
    assert {name.split("/")[0] for name in content(named / "mine-3")} >= WRITTEN


def test_last_is_the_newest_run_and_goes_on_in_its_own_folder(
    named: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", *GIVEN])
    main(["fit", *GIVEN])
    first = content(named / "mine")
    with caplog.at_level("INFO"):
        main(["fit", *GIVEN, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    assert "runs/mine-2, the newest of 2 runs of this config; --run_name names" in caplog.text
    assert (last_step(named / "mine"), last_step(named / "mine-2")) == (2, 4)
    assert content(named / "mine") == first
    # A checkpoint's file says which run it is of, as does its name or the config that it saved.
    more = ("--trainer.max_epochs", "3")
    main(["fit", *GIVEN, *more, "--ckpt_path", "runs/mine/checkpoints/last.ckpt"])
    assert (last_step(named / "mine"), last_step(named / "mine-2")) == (6, 4)
    main(["validate", *GIVEN, "--run_name", "mine", "--ckpt_path", "last"])
    shutil.copy(named / "mine/checkpoints/last.ckpt", "copied.ckpt")
    main(["validate", "--config", "runs/mine-2/config.yaml", "--ckpt_path", "last"])
    assert all((named / run / "validate").is_dir() for run in ("mine", "mine-2"))
    main(["fit", "--config", "runs/mine-2/config.yaml", *more, "--ckpt_path", "last"])
    assert last_step(named / "mine-2") == 6
    assert folders(named) == ["mine", "mine-2"]
    main(["fit", *GIVEN, "--trainer.max_epochs", "4", "--ckpt_path", "copied.ckpt"])  # of no run
    assert folders(named) == ["mine", "mine-2", "mine-3"]
    for run in ("mine", "mine-2"):  # the numbers that are left are found
        (named / run).rename(named / f"old-{run}")
    main(["validate", *GIVEN, "--ckpt_path", "last"])
    assert (named / "mine-3/validate").is_dir()


def test_a_named_run_has_no_number_and_its_saved_config_is_that_run(
    named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *GIVEN, "--run_name", "first try"])
    saved = named / "first try/config.yaml"
    assert yaml.safe_load(saved.read_text())["run_name"] == "first try"
    before = content(named)
    for given in ((*GIVEN, "--run_name", "first try"), ("--config", str(saved))):
        assert "first try/checkpoints holds a run already; go on with it by" in refusal(
            capsys, "fit", *given
        )
    assert content(named) == before
    main(["fit", "--config", str(saved), "--run_name", "second"])
    main(["fit", "--config", str(saved), "--trainer.logger.name", "third"])
    assert folders(named) == ["first try", "second", "third"]
    assert "name: second" in (named / "second/config.yaml").read_text()


@pytest.mark.parametrize("name", ["", "/tmp/x", "../x", "s3://x", "."])
def test_what_names_no_folder_of_a_run_is_refused(
    named: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "names no folder inside that of the runs" in refusal(
        capsys, "fit", *GIVEN, "--run_name", name
    )
    line = refusal(capsys, "fit", *GIVEN, "--run_name", "x", "--trainer.logger", "false")
    assert "--run_name has no effect without a trainer.logger" in line
    assert not named.exists()


def test_overlays_say_so_in_the_name_until_a_file_names_the_run_itself(named: Path) -> None:
    overlays = named.parent / "overlays"
    overlays.mkdir()
    (overlays / "slow.yaml").write_text("model: {init_args: {lr: 0.1}}")
    (overlays / "own.yaml").write_text(RUN.replace("mine", "own"))
    slow, own = (("--config", f"overlays/{name}.yaml") for name in ("slow", "own"))
    main(["fit", *GIVEN, *slow])
    main(["fit", *GIVEN, *slow])
    main(["fit", *GIVEN, *slow, *own])
    main(["fit", *GIVEN, *own, *slow])
    assert folders(named) == ["mine_slow", "mine_slow-2", "own", "own_slow"]


def test_two_loggers_keep_their_names_and_share_the_number(named: Path) -> None:
    second = RUN.partition("  callbacks")[0].partition("logger:\n")[2].replace("mine", "table")
    with (named.parent / "run.yaml").open("w") as file:
        file.write(RUN.replace("  callbacks", f"{second}  callbacks"))
    main(["fit", *GIVEN])
    main(["fit", *GIVEN])
    assert folders(named) == ["mine", "mine-2", "table", "table-2"]


def test_trainings_that_begin_at_once_take_two_folders(named: Path) -> None:
    hold = (
        "import sys; from pathlib import Path\n"
        "from lightning_modules.cli.run_folder.reservation import reserve\n"
        "print(reserve(Path('runs/mine')), flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    main(["fit", *GIVEN])
    assert folders(named) == ["mine", "mine-2"] and not content(named / "mine")
    other.communicate()
    main(["fit", *GIVEN])
    assert "config.yaml" in content(named / "mine")


def test_a_refused_training_leaves_no_folder(
    named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal(capsys, "fit", *GIVEN, "--model.num_steps", "0")
    assert not named.exists() and not reservation._held


def test_ranks_agree_on_the_number(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    config = write_config(tmp_path, tiny_sd3_folder)
    short = ["--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0"]
    short += ["--data.batches_per_epoch", "1", *TWO]
    taken = tmp_path / "runs/tiny/checkpoints/last.ckpt"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"")
    on_ranks(tmp_path, (tmp_path, ["fit", "--config", str(config), *short]))
    assert folders(tmp_path / "runs") == ["tiny", "tiny-2"]
    assert not taken.read_bytes() and len(list(taken.parent.iterdir())) == 1
    assert {"config.yaml", "decisions.jsonl", "checkpoints"} <= {
        path.name for path in (tmp_path / "runs/tiny-2").iterdir()
    }
    assert (tmp_path / "runs/tiny-2/checkpoints/last.ckpt").is_file()
