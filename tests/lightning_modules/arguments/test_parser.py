from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_modules.arguments.parser import OneLineParser, join_texts
from lightning_modules.commands import COMMANDS


def test_texts_on_the_command_line_become_one_list() -> None:
    typed = ["sample", "--prompts", "a: b", 'a "c"', "--seed", "1"]
    joined = join_texts(typed, COMMANDS["sample"].texts)
    assert joined[:2] == ["sample", "--prompts"] and joined[3:] == ["--seed", "1"]
    assert json.loads(joined[2]) == ["a: b", 'a "c"']
    assert join_texts(["sample", "--prompts", "[a, b]"], ["prompts"])[2] == "[a, b]"
    number = ["signals", "--prompts", "3"]
    assert join_texts(number, COMMANDS["signals"].texts) == number
    assert join_texts([], ["prompts"]) == []


def test_commands_with_arguments_of_their_own_name_the_unreadable_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.yaml").write_text("runs: [")
    monkeypatch.setattr("sys.argv", ["aegpo", "compare", "--config", "broken.yaml"])
    parser = OneLineParser()
    parser.add_argument("--config", action="config")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--config", "broken.yaml"])
    assert stopped.value.code == 2
    assert 'in "broken.yaml", line 2' in capsys.readouterr().err
