"""The page: sections of figures, pictures and tables, put into one HTML file that needs nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment
from matplotlib.figure import Figure

from lightning_modules.commands.report.figures import to_svg

MARK = "<!-- written by aegpo report"
"""Beginning of every page, by which the next one knows that it may replace it."""
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
        title: Its heading.
        note: A line below it.
        alarm: Whether the line is one.
        parts: What `figure`, `frames` and `table` return.
    """

    title: str
    note: str = ""
    alarm: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)


def figure(drawn: Figure, title: str) -> dict[str, Any]:
    """A figure as a part of a section.

    A picture of its own inside the page: no script in it would run, and no name in it clashes.
    """
    return {"kind": "figure", "title": title, "source": _data("svg+xml", to_svg(drawn).encode())}


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


def to_html(title: str, sections: Sequence[Section]) -> bytes:
    """Write the page.

    Args:
        title: Its title.
        sections: Its parts; those with nothing in them are left out.

    Returns:
        HTML in UTF-8. Every text in it is escaped, and it may load nothing and run no script but
        its own, by its content security policy.
    """
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    page = environment.from_string(template).render(
        title=title,
        sections=[section for section in sections if section.parts or section.note],
        script=_SCRIPT,
        script_hash=digest,
    )
    return page.encode("utf-8", errors="replace")  # half a surrogate pair is no character


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
