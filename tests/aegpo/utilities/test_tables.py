"""Tables, read back by those they are written for."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from aegpo.utilities.tables import finite, markdown_table, write_csv


@dataclass
class Point:
    x: float
    name: str = "p"


def test_markdown_as_it_is_written() -> None:
    table = markdown_table(("name", "score"), [("a", "1.0"), ("b", "–")])
    assert table == "| name | score |\n| --- | ---: |\n| a | 1.0 |\n| b | – |"
    assert markdown_table(("x", "y"), [], text_columns=2) == "| x | y |\n| --- | --- |"


def test_a_cell_may_hold_what_markdown_reads_as_a_border() -> None:
    cells = ["a red circle | a blue one", "`scale: group | none`", "two\nlines"]
    page = MarkdownIt("commonmark").enable("table").parse(markdown_table("abc", [cells]))
    read = [token.content for token in page if token.type == "inline"][3:]
    assert read == [*cells[:2], "two lines"]


def test_csv_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    write_csv(file, ("Δ", "text"), [(0.5, 'a "b", c'), (None, "two\nlines"), (math.inf, "")])
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["Δ", "text"], ["0.5", 'a "b", c'], ["", "two\nlines"], ["inf", ""]]


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"a": [1.23456789, math.nan], "b": (math.inf, 2, True, None, "x"), "c": [Point(0.125)]}
    assert finite(value) == {
        "a": [1.23456789, None],
        "b": [None, 2, True, None, "x"],
        "c": [{"x": 0.125, "name": "p"}],
    }
    assert finite(value, 2)["a"] == [1.23, None] and finite(Point(math.nan), 2)["x"] is None
    json.dumps(finite(value), allow_nan=False)
