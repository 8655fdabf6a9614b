"""An evaluation as Markdown, CSV and a page of HTML, for itself or beside others."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

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
from aegpo.utilities.page.page import Section, bullets, paragraph, table, to_html
from aegpo.utilities.page.page import gallery as side_by_side
from aegpo.utilities.tables import markdown_table

CSV_HEADER = (
    *("evaluation", "model", "kind", "weights", "score", "category", "mean", "low", "high"),
    *("prompts", "images", "missing", "difference", "difference_low", "difference_high"),
    *("suite", "protocol", "prompts_fingerprint", "settings_id", "settings", "versions"),
)
Gallery = Sequence[tuple[str, Sequence[tuple[str, Path]]]]
"""Prompts with the images of each model: its name and the file."""
_LARGEST = 256
"""Pixels of the longer side of a picture on the page."""


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


def page(results: Mapping[str, Result], gallery: Gallery) -> bytes:
    """Write evaluations as one page that needs nothing else.

    Args:
        results: By the name of the evaluation, this one first.
        gallery: What is shown side by side.

    Returns:
        HTML in which no text of a user's is markup.
    """
    own = next(iter(results.values()))
    sections = [Section("", parts=[paragraph(" ".join(about_suite(own)))])]
    for title, header, rows in blocks(results):
        sections.append(Section(title, parts=[table(header, rows)]))
    notes = table_of(results).notes
    if notes:
        sections.append(Section("Not to be compared", parts=[bullets(notes)]))
    shown = [
        side_by_side([(model, *_thumbnail(file)) for model, file in images], prompt)
        for prompt, images in gallery
    ]
    sections.append(Section("Side by side, from the same noise", parts=shown))
    told = ", ".join(f"{name} {version}" for name, version in own["versions"].items())
    made = table(("model", "from", "settings"), _made_with(results))
    parts = [made, paragraph(f"Versions: {told}")]
    sections.append(Section("What the numbers were made with", parts=parts))
    return to_html(f"Evaluation on {own['suite']['source']}", sections, width=72)


def _thumbnail(file: Path) -> tuple[bytes, str]:
    """A picture as small as a page needs it, and what its file is."""
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_LARGEST, _LARGEST))
    kind = "png" if max(small.size) <= _LARGEST // 2 else "jpeg"
    content = io.BytesIO()
    small.save(content, format=kind.upper(), quality=88)
    return content.getvalue(), kind


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
