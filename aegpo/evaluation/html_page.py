"""Pages that stand alone: no network, no script, and every text shown as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

__all__ = ["document", "escape", "figure", "table"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem;
  padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; } code { font-size: .85em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: 0 .6rem .8rem 0; vertical-align: top; }
figure img { display: block; min-width: 96px; image-rendering: pixelated; }
figcaption { font-size: .8rem; max-width: 16rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #161616; }
  th, td { border-color: #444; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: Iterable[str]) -> str:
    """Write a page.

    Args:
        title: Plain text.
        body: HTML, part by part; texts in it are escaped already.

    Returns:
        The page, which may load nothing and run nothing, whatever is in its body.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of plain texts, which scrolls where it is wider than the page.

    Args:
        header: Name of each column.
        rows: Cells by column.

    Returns:
        HTML.
    """

    def row(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    lines = [row("th", header), *(row("td", cells) for cells in rows)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def figure(picture: Image.Image, caption: str, largest: int = 256) -> str:
    """Write a picture into the page itself.

    Args:
        picture: The picture.
        caption: Plain text under it.
        largest: Longer side in pixels at most; small pictures stay as they are.

    Returns:
        HTML.
    """
    shown = picture.convert("RGB")
    shown.thumbnail((largest, largest))
    small = max(shown.size) <= 128
    content = io.BytesIO()
    shown.save(content, format="PNG" if small else "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
