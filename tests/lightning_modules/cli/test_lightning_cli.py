"""The command line with a tiny module and data in the user's own folder, never the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_modules.cli.lightning_cli import AEGPOCLI, main


def parse(*args: str) -> object:
    """Parse and build, without running a command."""

    class Built(Exception):
        pass

    class Stop(AEGPOCLI):
        def after_instantiate_classes(self) -> None:
            raise Built(self)

    try:
        Stop(["fit", "--config", "base.yaml", "--trainer.logger=false", *args])
    except Built as built:
        return built.args[0]
    raise AssertionError("it did not get as far as building the classes")


def test_later_configs_and_arguments_are_merged(user_folder: Path) -> None:
    overlay = {
        "model": {"init_args": {"reward": {"init_args": {"weight": 3.0}}, "num_steps": 7}},
        "trainer": {"callbacks+": [{"class_path": "LearningRateMonitor"}]},
    }
    (user_folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    cli = parse("--config", "overlay.yaml", "--model.lr", "0.25")
    assert type(cli.model.reward).__name__ == "MyReward"  # kept from the first file
    assert (cli.model.reward.weight, cli.model.lr) == (3.0, 0.25)
    assert cli.model.hparams["num_steps"] == 7
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert "LearningRateMonitor" in names


def test_fit_runs_saves_its_config_and_validate_accepts_it(user_folder: Path) -> None:
    main(["fit", "--config", "base.yaml", "--trainer.logger.name", "mine"])
    saved = user_folder / "runs/mine/version_0/config.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lr"] == 0.5
    main(["validate", "--config", str(saved)])
    checkpoint = next((user_folder / "runs").rglob("*.ckpt"))
    main(["validate", "--config", "base.yaml", "--ckpt_path", str(checkpoint)])


def test_a_checkpoint_never_beats_the_command_line(
    user_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = {"pytorch-lightning_version": "2.6.0", "state_dict": {}}
    saved = written | {"hyper_parameters": {"lr": 0.5, "num_steps": 4}}
    torch.save(saved, user_folder / "old.ckpt")
    with caplog.at_level("INFO"):
        cli = parse("--model.lr", "0.125", "--ckpt_path", "old.ckpt")
    assert cli.model.lr == 0.125
    assert "model.lr: the checkpoint was made with 0.5, this run uses 0.125" in caplog.text
    assert "num_steps" not in caplog.text


def test_debug_shows_the_traceback(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGPO_DEBUG", "1")
    with pytest.raises(Exception, match="num_steps=0"):
        main(["fit", "--config", "base.yaml", "--model.num_steps", "0"])


def test_what_a_checkpoint_keeps_of_a_config_is_what_lightning_writes(user_folder: Path) -> None:
    cli = parse("--model.lr", "0.25")
    ours = cli.config_dump
    del cli.config_dump
    LightningCLI._dump_config(cli)  # which checks it once more
    assert ours == cli.config_dump and ours["model"]["init_args"]["lr"] == 0.25
