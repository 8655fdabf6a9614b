"""An evaluation as Markdown, CSV and a page of HTML, for itself or beside others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from aegpo.evaluation.html_page import document, escape, figure, table
from aegpo.evaluation.tables import (
    Result,
    about_suite,
    blocks,
    scores_of,
    settings_line,
    shown,
    table_of,
)
from aegpo.utilities.names import markdown_code, markdown_text
from aegpo.utilities.tables import markdown_table

CSV_HEADER = (
    *("evaluation", "model", "kind", "weights", "score", "category", "mean", "low", "high"),
    *("prompts", "images", "missing", "difference", "difference_low", "difference_high"),
    *("suite", "protocol", "prompts_fingerprint", "settings_id", "settings", "versions"),
)
Gallery = Sequence[tuple[str, Sequence[tuple[str, Path]]]]
"""Prompts with the images of each model: its name and the file."""


def markdown(results: Mapping[str, Result]) -> str:
    """Write evaluations as Markdown.

    Args:
        results: By the name of the evaluation, this one first.

    Returns:
        The text.
    """
    own = next(iter(results.values()))
    suite = own["suite"]
    lines = [
        f"# Evaluation on {markdown_text(suite['source'])}",
        "",
        *(f"{markdown_text(line)}  " for line in about_suite(own)),
    ]
    for title, header, rows in blocks(results):
        lines += ["", f"## {markdown_text(title)}", ""]
        cells = [[markdown_text(cell) for cell in row] for row in (header, *rows)]
        lines.append(markdown_table(cells[0], cells[1:]))
    notes = table_of(results).notes
    if notes:
        lines += ["", "## Not to be compared", "", *(f"- {markdown_text(n)}" for n in notes)]
    lines += ["", "## What the numbers were made with", ""]
    for row, source, line in _made_with(results):
        made = f"**{markdown_text(row)}** ({markdown_text(source)})"
        lines.append(f"- {made}: {markdown_code(line)}")
    told = ", ".join(f"{name} {version}" for name, version in own["versions"].items())
    return "\n".join([*lines, "", f"Versions: {told}", ""])


def page(results: Mapping[str, Result], gallery: Gallery) -> str:
    """Write evaluations as one page that needs nothing else.

    Args:
        results: By the name of the evaluation, this one first.
        gallery: What is shown side by side.

    Returns:
        HTML in which no text of a user's is markup.
    """
    own = next(iter(results.values()))
    body = [f"<p>{escape(' '.join(about_suite(own)))}</p>"]
    for title, header, rows in blocks(results):
        body += [f"<h2>{escape(title)}</h2>", table(header, rows)]
    notes = table_of(results).notes
    if notes:
        told = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body += ["<h2>Not to be compared</h2>", f"<ul>{told}</ul>"]
    body.append("<h2>Side by side, from the same noise</h2>")
    for prompt, images in gallery:
        figures = []
        for model, file in images:
            with Image.open(file) as picture:
                figures.append(figure(picture, model))
        body.append(f"<p>{escape(prompt)}<br>{''.join(figures)}</p>")
    body.append("<h2>What the numbers were made with</h2>")
    body.append(table(("model", "from", "settings"), _made_with(results)))
    told = ", ".join(f"{name} {version}" for name, version in own["versions"].items())
    body.append(f"<p>Versions: {escape(told)}</p>")
    return document(f"Evaluation on {own['suite']['source']}", body)


def _made_with(results: Mapping[str, Result]) -> Iterator[tuple[str, str, str]]:
    for place, (name, result) in enumerate(results.items()):
        for model in result["models"]:
            row = model["name"] if place == 0 else f"{model['name']} ({name})"
            yield row, model["source"], settings_line(result, model)


def csv_rows(results: Mapping[str, Result]) -> Iterator[list[Any]]:
    """Every number with what it was made with, one a row; columns as `CSV_HEADER`.

    Args:
        results: By the name of the evaluation.

    Yields:
        The rows.
    """
    for name, result in results.items():
        suite = result["suite"]
        versions = _words(result["versions"])
        for model in result["models"]:
            first = [name, model["name"], model["kind"], model["weights"]]
            last = [suite["source"], suite["protocol"], suite["fingerprint"]]
            last += [model["settings_id"], _words(model["settings"]), versions]
            for score, entry in scores_of(model):
                yield [*first, score, "", *_numbers(entry), *last]
                for category, part in (entry.get("categories") or {}).items():
                    yield [*first, score, category, *_numbers(part), *last]


def _words(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}={shown(value)}" for key, value in values.items())


def _numbers(entry: Mapping[str, Any]) -> list[Any]:
    apart = entry.get("difference") or {}
    names = ("mean", "low", "high", "prompts", "images", "missing")
    return [entry.get(name) for name in names] + [apart.get(n) for n in ("mean", "low", "high")]
