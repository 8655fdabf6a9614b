"""Names of users in tags, in Markdown as TensorBoard shows it, and in figures."""

from __future__ import annotations

import html
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from tensorboard.plugin_util import markdown_to_safe_html

from aegpo.utilities.names import figure_text, markdown_code, markdown_text, tag_name, tag_part
from aegpo.utilities.tables import markdown_table

NASTY = [
    "a/b",
    "a\\b",
    "a|b",
    "a\\|b",
    "*bold* and _cursive_",
    "`code`",
    "<lora:style:1> hat",
    "<script>alert(1)</script>",
    "[a](http://b.c)",
    "![a](b.png)",
    "~~gone~~",
    "&lt;",
    "$5 and $6",
    "$\\frac{1}$",
    "# head",
    "(cat:1.2), [dog]",
    "_x",
    "[red]text[/red] [/x]",
    "é 猫 🐈",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_cell_shows_the_text_as_it_is(text: str) -> None:
    page = markdown_to_safe_html(markdown_table(("prompt", "n"), [(markdown_text(text), "1")]))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == [text, "1"]


@pytest.mark.parametrize("text", [*NASTY, "`", "a `` b", "``` c", "a|`b`", "two\nlines"])
def test_code_in_a_cell_ends_where_the_text_ends(text: str) -> None:
    table = markdown_table(("code", "n"), [(markdown_code(text), "1")])
    page = MarkdownIt("commonmark").enable("table").render(table)  # as pages of models are shown
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL)
    code = cells[0].removeprefix("<code>").removesuffix("</code>")
    assert len(cells) == 2 and html.unescape(code) == " ".join(text.split())


def test_a_text_of_several_lines_stays_in_its_cell() -> None:
    assert markdown_text(" two\n\tlines\r\n here ") == "two lines here"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_tag_s_part_has_no_slash_and_is_read_back(name: str) -> None:
    part = tag_part(name)
    assert part and not set(part) & set("/\\\n\r\t\0")
    assert tag_name(part) == name


def test_most_names_are_their_own_tag() -> None:
    for name in ("two objects", "80%", "color_attr", "é", "a.b-c", "100% red"):
        assert tag_part(name) == name
    assert tag_part("\ud800") == "%D800"  # no file could hold it


@pytest.mark.parametrize("text", NASTY)
def test_a_figure_shows_the_text_as_it_is(text: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=figure_text(text))
    legend = axes.legend()
    assert len(legend.get_texts()) == 1
    if text.isascii():
        figure.savefig(io.BytesIO())  # mathematics that is none would raise here
