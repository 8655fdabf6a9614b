from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_modules.arguments.parser import OneLineParser, join_texts
from lightning_modules.commands import COMMANDS


def test_texts_on_the_command_line_become_one_list() -> None:
    typed = ["sample", "--prompts", "a: b", 'a "c"', "--seed", "1"]
    joined = join_texts(typed, COMMANDS["sample"].texts)
    assert joined[:4] == ["sample", "--seed", "1", "--prompts"]
    assert json.loads(joined[4]) == ["a: b", 'a "c"']
    number = ["signals", "--prompts", "3"]
    assert join_texts(number, COMMANDS["signals"].texts) == number
    assert join_texts([], ["prompts"]) == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--prompts", "--no hands, a cat", "[wide shot] a dog"], None),
        (["--prompts", "[wide shot]"], None),
        (
            [
                "--prompts",
                "😀",
                "a\u2028b",
                "a\x85b",
                "tab\t",
                "line\nbreak",
                'a "b" \\ c',
                "null",
                "1",
            ],
            None,
        ),
        (["--prompts=--no-hands"], ["--no-hands"]),
        (["--prompts", "a", "--out", "b", "--prompts", "c"], ["a", "c"]),
        (["--prompts", '["a", "b"]', "-c", "x.yaml"], ["a", "b"]),
        (["--prompts"], []),
    ],
)
def test_texts_arrive_as_they_are(typed: list[str], meant: list[str] | None) -> None:
    joined = join_texts(typed, ["prompts"])
    parser = OneLineParser()
    parser.add_argument("--prompts", type=list[str])
    assert parser.parse_args(joined[-2:]).prompts == (typed[1:] if meant is None else meant)


class Inner:
    def __init__(self, size: int | None = 3, name: str = "a", label: str | None = None) -> None:
        self.size, self.name, self.label = size, name, label


class Outer:
    def __init__(self, inner: Inner, count: int = 2) -> None:
        self.inner, self.count = inner, count


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["--outer.cou", "3"], "has no argument 'cou'; did you mean 'count'?"),
        (["--outer.inner.na", "3"], "has no argument 'na'; did you mean 'name'?"),
        (["--whole=3"], "there is no option 'whole'; did you mean 'whole_number'?"),
        (["sub", "--part", "3"], "there is no option 'part'; did you mean 'part_number'?"),
    ],
)
def test_the_beginning_of_an_option_is_none(
    typed: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser, command = OneLineParser(), OneLineParser(allow_abbrev=True)
    command.add_argument("--part_number", type=int)
    parser.add_argument("--whole_number", type=int)
    parser.add_argument("--outer", type=Outer)
    if typed[0] == "sub":
        parser.add_subcommands().add_subcommand("sub", command)
    else:
        typed = [f"--outer={__name__}.Outer", f"--outer.inner={__name__}.Inner", *typed]
    with pytest.raises(SystemExit):
        parser.parse_args(typed)
    assert line in capsys.readouterr().err


def test_null_is_null_however_deep_and_refused_where_it_cannot_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = OneLineParser()
    parser.add_argument("--outer", type=Outer)
    given = [f"--outer={__name__}.Outer", f"--outer.inner={__name__}.Inner"]
    for word in ("null", "None"):
        parsed = parser.parse_args([*given, f"--outer.inner.size={word}"])
        assert parsed.outer.init_args.inner.init_args.size is None
    kept = parser.parse_args([*given, "--outer.inner.label", "null", "--outer.inner.name", "b"])
    assert kept.outer.init_args.inner.init_args.label is None
    for key, kind in (("outer.inner.name", "str"), ("outer.count", "int")):
        with pytest.raises(SystemExit):
            parser.parse_args([*given, f"--{key}=null"])
        assert f"{key}: expected {kind}, got null" in capsys.readouterr().err


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
