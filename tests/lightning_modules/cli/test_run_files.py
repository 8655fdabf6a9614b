"""What a command writes beside its result: the config of a run, a checkpoint when told to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from user_folder import refusal

from lightning_modules.cli.lightning_cli import AEGPOCLI, main
from lightning_modules.cli.saved_config import free_place
from lightning_modules.commands import COMMANDS

LOGGED = ("--trainer.logger.name", "mine", "--trainer.logger.version", "")
CHECKPOINTS = """
trainer:
  callbacks:
    - {class_path: callbacks.RolloutCheckpoint, init_args: {dirpath: runs/mine/checkpoints}}
"""
REQUIRED = {
    "evaluate": ("--out", "x"),
    "export": ("--out", "x"),
    "sample": ("--out", "x", "--prompts", "a red circle"),
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, without the caches of Python."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "command",
    [("validate",), ("fit", "--trainer.enable_checkpointing", "false")],
    ids=["validate", "fit"],
)
def test_nothing_is_written_without_a_log_folder(
    user_folder: Path, command: tuple[str, ...]
) -> None:
    (user_folder / "config.yaml").write_text((user_folder / "base.yaml").read_text())
    before = content(user_folder)
    main([*command, "--config", "config.yaml", "--trainer.logger", "false"])
    assert content(user_folder) == before


@pytest.mark.parametrize("text", ["mine: 1\n", "# written by aegpo fit\n", "\xff", ""])
def test_a_users_config_in_the_log_folder_stays(user_folder: Path, text: str) -> None:
    saved = user_folder / "runs/mine/config.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text(text, encoding="latin-1")
    main(["fit", "--config", "base.yaml", *LOGGED])
    assert saved.read_text(encoding="latin-1") == text
    assert "seed_everything: 0" in saved.with_name("config_1.yaml").read_text()


def test_a_config_is_replaced_until_someone_changes_it(user_folder: Path) -> None:
    saved = user_folder / "runs/mine/config.yaml"
    main(["fit", "--config", "base.yaml", *LOGGED])
    assert free_place(saved) == saved
    saved.write_text(saved.read_text().replace("lr: 0.5", "lr: 0.25"))
    assert free_place(saved) == saved.with_name("config_1.yaml")


def test_a_default_that_is_no_plain_value_is_saved_as_one(
    user_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--config", "base.yaml", "--trainer.callbacks", '[{"class_path": "Timer"}]')
    main(["fit", *given, *LOGGED])
    saved = str(user_folder / "runs/mine/config.yaml")
    (timer,) = yaml.safe_load(Path(saved).read_text())["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", saved, "--print_config"])
    assert stopped.value.code == 0 and "interval: step" in capsys.readouterr().out


def test_a_runs_config_is_that_of_fit_and_every_command_accepts_it(user_folder: Path) -> None:
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS)
    given = ("--config", "base.yaml", "--config", "checkpoints.yaml", *LOGGED)
    main(["fit", *given])
    saved = user_folder / "runs/mine/config.yaml"
    before = saved.read_bytes()
    main(["validate", *given, "--ckpt_path", "last", "--verbose", "false"])
    assert saved.read_bytes() == before
    assert yaml.safe_load(before)["model"]["init_args"]["lr"] == 0.5

    class Parsed(Exception):
        pass

    class Stop(AEGPOCLI):
        def before_instantiate_classes(self) -> None:
            raise Parsed

    names = [row.name for row in COMMANDS.values() if row.method is not None]
    for name in (*names, "fit", "validate", "test", "predict"):
        with pytest.raises(Parsed):
            Stop([name, "--config", str(saved), *REQUIRED.get(name, ())])


def test_a_new_run_is_refused_where_one_is(
    user_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS)
    given = ("--config", "base.yaml", "--config", "checkpoints.yaml", *LOGGED)
    main(["fit", *given])
    before = content(user_folder)
    said = refusal(capsys, "fit", *given)
    assert "runs/mine/checkpoints holds a run already; go on with it by --ckpt_path last" in said
    assert content(user_folder) == before
    main(["fit", *given, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    (user_folder / "runs/mine").rename(user_folder / "runs/first")
    log = user_folder / "runs/mine/metrics.csv"
    log.parent.mkdir()
    csv = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", *LOGGED)
    log.write_text("step,reward/mean\n1,0.5\n")
    said = refusal(capsys, "fit", "--config", "base.yaml", *csv)
    assert "runs/mine holds a run already" in said
    log.write_text("step,val/score\n0,0.5\n")  # refused before its first iteration
    main(["fit", "--config", "base.yaml", *csv])


def test_a_run_that_is_told_to_end_leaves_a_checkpoint_and_a_status(user_folder: Path) -> None:
    (user_folder / "checkpoints.yaml").write_text(CHECKPOINTS)
    (user_folder / "tell.py").write_text(
        "import os, signal, lightning\n"
        "class Tell(lightning.Callback):\n"
        "    def on_train_batch_start(self, *args): os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    given = ("--config", "base.yaml", "--config", "checkpoints.yaml", *LOGGED)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *given, "--trainer.callbacks+", "tell.Tell"])
    assert stopped.value.code == 143
    last = torch.load(user_folder / "runs/mine/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1  # of two
