"""A page: sections of texts, pictures and tables, put into one HTML file that needs nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment

_SCRIPT = """
for (const box of document.querySelectorAll(".frames")) {
  const range = box.querySelector("input"), images = box.querySelectorAll("img");
  if (range) range.addEventListener("input", () => {
    images.forEach((image, number) => { image.hidden = number !== Number(range.value); });
    box.querySelector("output").textContent = images[range.value].dataset.when;
  });
}
"""


@dataclass
class Section:
    """A part of the page.

    Args:
        title: Its heading; "" for none.
        note: A line below it.
        alarm: Whether the line is one.
        parts: What `picture`, `frames`, `table` and the others return.
    """

    title: str
    note: str = ""
    alarm: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)


def picture(content: bytes, kind: str, title: str) -> dict[str, Any]:
    """A picture as a part of a section.

    It is a picture of its own inside the page: no script in it would run, and no name in it
    clashes.

    Args:
        content: The file's.
        kind: What it is: "png", "jpeg" or "svg+xml".
        title: What it shows.

    Returns:
        The part.
    """
    return {"kind": "picture", "title": title, "source": _data(kind, content)}


def gallery(pictures: Iterable[tuple[str, bytes, str]], title: str) -> dict[str, Any]:
    """Small pictures side by side as a part of a section.

    Args:
        pictures: Of each its caption, the file's content, and "png" or "jpeg".
        title: Above them.

    Returns:
        The part.
    """
    shown = [{"caption": text, "source": _data(kind, content)} for text, content, kind in pictures]
    return {"kind": "gallery", "title": title, "pictures": shown}


def paragraph(text: str) -> dict[str, Any]:
    """A text as a part of a section."""
    return {"kind": "text", "text": text}


def bullets(lines: Iterable[str]) -> dict[str, Any]:
    """Texts one below the other as a part of a section."""
    return {"kind": "list", "lines": list(lines)}


def heading(text: str) -> dict[str, Any]:
    """A heading inside a section, as a part of it."""
    return {"kind": "heading", "title": text}


def frames(pictures: Mapping[int, bytes], title: str) -> dict[str, Any]:
    """PNG files by iteration as a part of a section, with a slider if there are several."""
    shown = [{"when": when, "source": _data("png", pictures[when])} for when in sorted(pictures)]
    return {"kind": "frames", "title": title, "frames": shown}


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    words: int = 1,
    folded: bool = False,
) -> dict[str, Any]:
    """A table as a part of a section.

    Args:
        header: Name of each column.
        rows: Cells by column, any text.
        title: Above it.
        words: So many columns from the left hold words; the others are aligned as numbers.
        folded: Whether it is unfolded by a click on its title.

    Returns:
        The part.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    return {
        "kind": "table",
        "title": title,
        "header": list(header),
        "rows": cells,
        "words": words,
        "folded": folded,
    }


def to_html(title: str, sections: Sequence[Section], mark: str = "", width: int = 62) -> bytes:
    """Write the page.

    Args:
        title: Its title.
        sections: Its parts; those with nothing in them are left out.
        mark: A comment in HTML that the file begins with, by which a later page knows it.
        width: At most so wide, in letters' heights (rem); a phone's page is narrower.

    Returns:
        HTML in UTF-8. Every text in it is escaped, and it may load nothing and run no script but
        its own, by its content security policy.
    """
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    filled = [section for section in sections if section.parts or section.note]
    moves = any(part["kind"] == "frames" for section in filled for part in section.parts)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    page = environment.from_string(template).render(
        title=title,
        sections=filled,
        mark=mark,
        width=width,
        script=_SCRIPT if moves else "",
        script_hash=digest,
    )
    return page.encode("utf-8", errors="replace")  # half a surrogate pair is no character


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
