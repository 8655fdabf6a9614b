"""Config files as they are written: a mistake in one gets its file and its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from user_folder import BASE, refusal

from lightning_modules.arguments.config_files import (
    config_files,
    mistake_in_file,
    mistake_in_value,
)

TWICE = b"trainer:\n  max_epochs: 1\n  max_steps: 2\n  max_epochs: 3\n"
BELOW = b"a: [{b: 1}, {c: 1, b: 2,\n  c: 3}]\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TWICE, "x.yaml:4: 'max_epochs' is given a second time, after line 2, and YAML would"),
        (BELOW, "x.yaml:2: 'c' is given a second time, after line 1"),
        (b"a: {b: 1, b: 1}\n", "x.yaml:1: 'b' is given a second time, after the same line"),
        ("a: 1\nb: café\n".encode("latin-1"), "x.yaml:2: byte 0xe9 is not UTF-8; save the file"),
        ("a: 1\n".encode("utf-16"), "x.yaml is UTF-16; save the file as UTF-8"),
        (b"", "x.yaml is empty; leave it out, or write settings into it"),
        (b"# nothing yet\n", "x.yaml is empty"),
        (b"- a\n- b\n", "x.yaml holds a list; a config maps names to values, such as model:"),
        (b"hello\n", "x.yaml holds a text; a config maps"),
    ],
)
def test_what_would_not_be_read_as_it_was_meant(folder: Path, content: bytes, told: str) -> None:
    (folder / "x.yaml").write_bytes(content)
    mistake = mistake_in_file("x.yaml")
    assert mistake is not None and mistake.startswith(told), mistake


@pytest.mark.parametrize(
    "content",
    [
        "a: {b: 1}\nc: {b: 1}\n",
        "a: [{b: 1}, {b: 1}]\n",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: *x\n",
        "\ufeffa: 1\n",
        "a: [1\n",
        "a: !!python/object/apply:os.system [x]\n",
    ],
)
def test_the_rest_is_left_to_the_parser(folder: Path, content: str) -> None:
    (folder / "x.yaml").write_text(content, encoding="utf-8")
    assert mistake_in_file("x.yaml") is None
    assert mistake_in_file(".") is None and mistake_in_file("trainer: {max_epochs: 1}") is None


def test_a_file_that_is_not_there_is_named_beside_one_that_is(folder: Path) -> None:
    (folder / "shapes.yaml").write_text("a: 1\n")
    told = "there is no config shape.yaml; did you mean 'shapes.yaml'?"
    assert mistake_in_file("shape.yaml") == told
    assert mistake_in_file("nothing.yaml") == "there is no config nothing.yaml"
    assert mistake_in_file("no/x.yaml") == "there is no config no/x.yaml, nor a folder no"


def test_aliases_of_aliases_are_looked_at_once(folder: Path) -> None:
    lines = ["a0: &a0 {b: 1}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    (folder / "x.yaml").write_text("\n".join(lines))
    assert mistake_in_file("x.yaml") is None


def test_a_typed_mapping_has_a_name_once() -> None:
    told = mistake_in_value("--data.shares", "{single: 1, count: 2, single: 3}")
    assert told == "--data.shares: 'single' is given twice; keep one of them"
    for text in ("{single: 1, count: 2}", "{single", "single", "[{a: 1}, {a: 1}]"):
        assert mistake_in_value("--data.shares", text) is None


def test_config_files_are_found_as_they_are_typed() -> None:
    typed = ["fit", "--config", "a.yaml", "--config=b.yaml", "-c", "c.yaml", "--x", "d", "--config"]
    assert config_files(typed) == ["a.yaml", "b.yaml", "c.yaml"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--config", "twice.yaml"), "error: twice.yaml:4: 'max_epochs' is given a second time"),
        (("--config=latin.yaml",), "error: latin.yaml:1: byte 0xe9 is not UTF-8"),
        (("--data", "{batch_size: 2, batch_size: 3}"), "--data: 'batch_size' is given twice"),
        (("validate",), "error: give one command: fit or validate; each is a line of its own"),
        (("model.lr=0.1",), "'model.lr' belongs to no option; give options as --model.lr value"),
        (("model.lr", "0.1"), "'model.lr' belongs to no option; give options as --model.lr value"),
        (("-model.lr", "0.1"), "'-model.lr' belongs to no option; give options as --model.lr"),
        (("lr=0.1",), "belongs to no option; give options as --name value"),
    ],
)
def test_the_command_line_says_it(
    user_folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    (user_folder / "twice.yaml").write_bytes(TWICE)
    (user_folder / "latin.yaml").write_text("# café\n" + BASE, encoding="latin-1")
    assert told in refusal(capsys, "fit", "--config", "base.yaml", *arguments)
