"""Tables as others read them: Markdown, CSV, and values that JSON can say."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1
) -> str:
    """Lay cells out as a table of GitHub's Markdown.

    Args:
        header: Name of each column.
        rows: Cells by column; a ``|`` in a cell is escaped, and its lines become one.
        text_columns: So many columns from the left hold words; the others are aligned as numbers.

    Returns:
        The lines, without a newline at the end.
    """
    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    lines = [[_cell(text) for text in header], rule, *([_cell(text) for text in r] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table for a program.

    Args:
        file: Replaced if it exists.
        header: Name of each column.
        rows: Values by column; None is an empty cell.
    """
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def finite(value: Any, digits: int | None = None) -> Any:
    """Put null in the place of numbers that JSON does not have, NaN and infinity.

    Args:
        value: A plain value, or dicts, sequences and dataclasses of such, however deep.
        digits: Places after the point to which numbers are rounded; None for all of them.

    Returns:
        The same with None for such numbers, lists for tuples and dicts for dataclasses.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {name: finite(entry, digits) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry, digits) for entry in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else round(value, digits)
    return value


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").splitlines())
