"""The help of a command: what matters first, read from sources, and true of the parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_runs import ROOT, Built
from user_folder import refusal

from lightning_modules.arguments.early import missing_option
from lightning_modules.arguments.short_help import (
    OF_A_RUN,
    asks_for_short_help,
    required_options,
    short_help,
)
from lightning_modules.cli.lightning_cli import AEGPOCLI
from lightning_modules.commands import COMMANDS

VALUES = {
    "--config": str(ROOT / "configs/shapes.yaml"),
    "--ckpt_path": "last",
    "--run_name": "mine",
    "--trainer.accelerator": "cpu",
    "--trainer.precision": "32-true",
    "--model.policy.pretrained": "shapes",
    "--model.reward": "aegpo.rewards.ShapesJudge",
    "--model.evaluation_rewards+": "aegpo.rewards.ShapesMatch",
    "--data.train_file": "shapes:train",
}
"""A value of each of the options that take no number."""


class Parsed(AEGPOCLI):
    """Parses, and builds nothing."""

    def before_instantiate_classes(self) -> None:
        raise Built(self.config["fit"].as_dict())


def test_the_twenty_that_matter_first_are_options(folder: Path) -> None:
    names = [option.partition(" ")[0] for option, _ in OF_A_RUN]
    assert len(names) == len(set(names)) == 20
    typed = [word for name in names for word in (name, VALUES.get(name, "1"))]
    with pytest.raises(Built) as built:
        Parsed(["fit", *typed])
    parsed = built.value.args[0]
    for name in names:
        place = parsed
        for key in name.strip("-+").split("."):
            place = place.get("init_args", place)[key]
        found = place[-1] if name.endswith("+") else place
        found = found["class_path"] if isinstance(found, dict) else found
        if name != "--config":
            assert str(found).rpartition(".")[2] in (VALUES.get(name, "1").rpartition(".")[2], "0")


@pytest.mark.parametrize("name", [row.name for row in COMMANDS.values() if row.takes_config])
def test_the_help_begins_with_the_commands_own_options(name: str) -> None:
    row = COMMANDS[name]
    said = short_help("aegpo", name, row.help, row.path)
    options = re.findall(r"^  --(\w+) ", said, flags=re.MULTILINE)
    hidden = {"model", "datamodule", "run", "weights_only"}
    expected = set(row.options()) - hidden if row.method else {"config", "ckpt_path", "run_name"}
    assert expected <= set(options)
    assert f"aegpo {name} --help all" in said
    assert all(len(line) <= 120 for line in said.splitlines())
    listed = re.findall(r"^  (--\S+.*)$", said, flags=re.MULTILINE)
    assert all(re.search(r"\S {2,}\S", line) for line in listed), "an option without a meaning"


def test_what_asks_for_it() -> None:
    assert asks_for_short_help(["--config", "x", "--help"]) and asks_for_short_help(["-h", "x"])
    assert not asks_for_short_help(["--help", "all"])
    assert not asks_for_short_help(["--model.help", "x"]) and not asks_for_short_help([])


def test_a_missing_option_is_told_by_its_meaning(folder: Path) -> None:
    row = COMMANDS["export"]
    assert [name for name, _ in required_options(row.path)] == ["out"]
    shapes = ["--config", VALUES["--config"]]
    told = missing_option(["export", *shapes], row.path)
    assert told is not None and told.startswith("export needs --out: folder to write, new or empty")
    (folder / "out.yaml").write_text("out: here")
    for given in (["--out", "x"], ["--out=x"], ["--config", "out.yaml"], ["--print_config"]):
        assert missing_option(["export", *shapes, *given], row.path) is None
    assert missing_option(["fit", *shapes], None) is None
    assert missing_option(["fit", "--model", "x.Y"], None) is None


def test_a_missing_config_is_told_as_the_parser_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, "fit") == f"error: {missing_option(['fit'], None)}"
