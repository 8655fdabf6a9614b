"""What people write into prompt files: every text arrives as it is, or is named with its line."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.prompts.files import read_prompts

# All that UTF-8 can carry, line breaks of every kind among it.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() != "")


def read(path: Path, column: str = "prompt") -> list[str]:
    """The prompts of a file that nothing is wrong with."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*(of them different|start with '#')")
        return [record["prompt"] for record in read_prompts(str(path), column)]


@settings(max_examples=30)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_survives_csv_and_json_lines(texts: list[str], tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "n"], *([text, "1"] for text in texts)])
    # The format has no way to tell \r\n inside a text from \n.
    assert read(folder / "a.csv") == [text.replace("\r\n", "\n") for text in texts]
    for ascii_only in (True, False):
        lines = [json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in texts]
        (folder / "a.jsonl").write_bytes("\r\n".join(lines).encode())
        assert read(folder / "a.jsonl") == texts


@pytest.mark.parametrize(
    "text",
    ["a red\u2028circle", "a red\x0ccircle", "a red\x85circle", "--a red circle", "[a, b]", '"a"'],
)
def test_a_line_of_text_is_one_prompt(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"{text}\r\n\r\n a blue square\t\n".encode())
    assert read(tmp_path / "a.txt") == [text, "a blue square"]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    content = {
        "txt": "a red circle\n",
        "jsonl": '{"prompt": "a red circle"}',
        "csv": "prompt,n\na red circle,1",
    }[name.lower().partition(".")[2]]
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read(tmp_path / name) == ["a red circle"]


def test_a_long_field_is_read_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    long = "word " * 40_000 + "end"
    (tmp_path / "a.csv").write_text(f"prompt\n{long}\n")
    before = csv.field_size_limit()
    assert read(tmp_path / "a.csv") == [long]
    assert csv.field_size_limit() == before


def test_a_row_that_ends_early_leaves_its_last_fields_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,category\na cat,animal\n\na car\n")
    assert read_prompts(str(tmp_path / "a.csv"), "prompt") == [
        {"prompt": "a cat", "category": "animal"},
        {"prompt": "a car"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,category\na red circle, 4k,single\na cat,x\n", r":2: skipped, 3 fields"),
        ("a.csv", 'prompt,c\na cat,x\n"two\nlines, 4k",x,y\n', r":3: skipped, 3 fields"),
        ("a.csv", "category,prompt\nx,a cat\nx\n", r":3: skipped, it has no 'prompt'"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": 5}\n', r":2: skipped, 'prompt' is 5, no text"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"text": "b"}\n', r":2: skipped, it has no 'prompt'"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": "\\ud83d"}\n', r":2: skipped, .* surrogate"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": \n', r":2: skipped, not JSON"),
    ],
)
def test_what_cannot_be_read_as_meant_is_skipped_with_its_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.warns(UserWarning, match=message):
        records = read_prompts(str(tmp_path / name), "prompt")
    assert [record["prompt"] for record in records] == ["a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a cat\na café\n".encode("latin-1"), r"a\.txt:2: byte 0xe9 is not UTF-8"),
        ("a.csv", "prompt\na café\n".encode("latin-1"), r"a\.csv:2: byte 0xe9 is not UTF-8"),
        ("a.jsonl", "a cat".encode("utf-16"), r"a\.jsonl is UTF-16; save the file as UTF-8"),
        ("a.csv", b'prompt\n"a red circle\na cat\n', r"a\.csv:2: not CSV \(unexpected end of data"),
        ("a.csv", b'prompt\na cat\n"a" cat\n', r"a\.csv:3: not CSV"),
        ("a.csv", b"prompt,prompt\na cat,b\n", r"a\.csv:1: two columns have one name"),
        ("a.csv", b"prompt;category\na cat;animal\n", r"no column 'prompt'; it has"),
    ],
)
def test_a_file_that_cannot_be_read_as_meant_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / name), "prompt")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"\x1f\x8b\x08\x00abc", "a.txt is compressed by gzip"),
        ("a.csv", b"PK\x03\x04abc", "a.csv is a zip archive or a spreadsheet"),
        ("a.txt", "a red circle\n".encode("utf-16"), "a.txt is UTF-16; save the file as UTF-8"),
        ("a.txt", "a\nb".encode("utf-16-le"), "a.txt:1: a zero byte"),
        ("a.txt", b"a red circle\rtwo blue squares\r", "end with a carriage return alone"),
        ("a.jsonl", b'[{"prompt": "a"}]', "a.jsonl is a JSON array; a .jsonl file has one"),
        ("a.jsonl", b'{"text": "a"}', "name the one that holds the prompt as data.column"),
    ],
)
def test_other_kinds_of_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(told)):
        read_prompts(name, "prompt")


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        read_prompts(str(tmp_path / "prompts.txt"), "prompt")


def test_what_was_hardly_meant_is_told(tmp_path: Path) -> None:
    def told(name: str, content: str) -> list[str]:
        file = tmp_path / name
        file.write_text(content)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            read_prompts(str(file), "prompt")
        return [str(one.message).removeprefix(f"{file}: ") for one in found]

    assert told("a.txt", "red\nblue\nred\nred\n") == ["4 prompts, 2 of them different"]
    same = '{"prompt": "red", "category": "a"}\n{"prompt": "red", "category": "b"}\n'
    assert told("a.jsonl", same) == ["2 prompts, 1 of them different"]
    assert told("a.csv", "prompt\nred\nred\n") == ["2 prompts, 1 of them different"]
    (comment,) = told("b.txt", "# one\n#two\nred\n#\n")
    assert comment.startswith("2 of 4 prompts start with '#' and are drawn like the others")
    (comments,) = told("c.txt", "#one\n#two\n")
    assert comments.startswith("2 of 2 prompts start with '#'")
    assert told("d.txt", "#1 dad\nred # blue\n") == []
    assert told("d.csv", "prompt\n# one\nblue\n") == []
