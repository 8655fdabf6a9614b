"""The table of commands: what it says is what the trainer, the parser and `--help` have."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_modules import cli
from lightning_modules.cli import main as entry
from lightning_modules.cli.lightning_cli import AEGPOCLI
from lightning_modules.cli.trainer import AEGPOTrainer
from lightning_modules.commands import COMMANDS, Command

OURS = [command for command in COMMANDS.values() if command.method is not None]


def test_every_command_is_lightning_s_a_method_or_a_program() -> None:
    assert list(AEGPOCLI.subcommands()) == [*LightningCLI.subcommands(), *(c.name for c in OURS)]
    bare = [c.name for c in COMMANDS.values() if c.method is None and c.program is None]
    assert bare == list(LightningCLI.subcommands())


@pytest.mark.parametrize("command", OURS, ids=[command.name for command in OURS])
def test_a_command_is_the_trainer_s_method_and_accepts_what_fit_saves(command: Command) -> None:
    function = command.function()
    assert getattr(AEGPOTrainer, command.name) is function
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:2] == ["trainer", "model"]
    assert {"ckpt_path", "weights_only"} <= set(parameters)
    assert set(command.texts) <= set(parameters)


COUNT = '''
"""A command of a contributor."""

from lightning.pytorch import LightningModule, Trainer

from lightning_modules.commands.configured_run import ConfiguredRun


def count(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    *,
    words: list[str],
    times: int = 1,
    run: ConfiguredRun | None = None,
) -> bool:
    """Count words over and over.

    Args:
        trainer: The trainer.
        model: The configured module.
        ckpt_path: Not used.
        weights_only: Not used.
        words: What is counted.
        times: How often each of them counts.
        run: The run as configured.

    Returns:
        Whether there were at most three.
    """
    print(f"{type(model).__name__}: {len(words) * times} words")
    print(run.files[0].name, sorted(run.config), run.trainer["max_epochs"], trainer.max_steps)
    print(type(run.build_data()).__name__, "is built on demand")
    return len(words) * times <= 3
'''


@pytest.fixture
def count_is_a_command(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a row, and a command line that has not been imported yet."""
    (user_folder / "count_words.py").write_text(COUNT)
    row = Command("count", "count words", method="count_words", texts=("words",))
    monkeypatch.setitem(COMMANDS, "count", row)
    for name in ("lightning_cli", "trainer"):
        monkeypatch.delitem(sys.modules, f"lightning_modules.cli.{name}")
        monkeypatch.delattr(cli, name)
    monkeypatch.delitem(sys.modules, "count_words", raising=False)


@pytest.mark.usefixtures("count_is_a_command")
def test_a_command_is_added_by_its_file_and_its_row_alone(
    user_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def aegpo(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aegpo", *arguments])
        status = 0
        try:
            entry.main()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    assert "  count         count words\n" in aegpo("--help")[1]

    status, text, _ = aegpo("count", "--help", "all")
    assert status == 0 and "Count words over and over:" in text
    assert re.search(r"--times TIMES +How often each of them counts", text)
    assert not any(re.search(rf"--{name}\b", text) for name in ("run", "datamodule"))

    run = ("count", "--config", "base.yaml", "--words", "one: 1", "two")
    status, text, _ = aegpo(*run)
    assert (status, text.splitlines()) == (
        0,
        [
            "Module: 2 words",
            "base.yaml ['data', 'model', 'seed_everything', 'trainer'] 1 -1",
            "Data is built on demand",
        ],
    )
    status, text, _ = aegpo(*run, "--times", "2")
    assert status == 1 and "Module: 4 words" in text
    status, _, error = aegpo(*run, "--tims", "2")
    assert status == 2 and error == "error: there is no option 'tims'; did you mean 'times'?\n"
    assert not (user_folder / "runs").exists()


def test_a_command_s_options_are_read_from_its_source() -> None:
    for command in COMMANDS.values():
        if command.method is None and command.program is not None:
            continue
        method = getattr(AEGPOTrainer, command.name)
        assert command.options() == list(inspect.signature(method).parameters)[1:], command.name
