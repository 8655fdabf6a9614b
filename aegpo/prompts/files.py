"""Prompt records from a text, JSON Lines or CSV file, or from a bundled set.

A text that is valid in its format arrives as it is; what cannot be read as it was meant is skipped
or refused with file, line and reason.
"""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegpo.prompts.sets import bundled_records, bundled_sources, is_bundled
from aegpo.utilities.files import read_utf8

Row = tuple[int, dict[str, Any] | str]
"""Line number from 1, and a record or the reason why there is none."""


def read_prompts(source: str, column: str) -> list[dict[str, Any]]:
    """Read prompt records; a bad row is skipped with a warning that names its line.

    Args:
        source: A `.txt` file (one prompt a line, blanks around it left out), a `.jsonl` or `.csv`
            file (fields separated by commas, quoted where they hold one), all in UTF-8; or a split
            of a bundled set: `shapes:train`, `geneval:heldout`, ... (`aegpo.prompts.sets`).
        column: Field that holds the prompt, in `.jsonl` and `.csv` files.

    Returns:
        One dict a prompt with at least the key `prompt`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file holds no prompt, has no such column, an unknown ending or another
            encoding, is no CSV, or there is no such bundled split.
    """
    if is_bundled(source):
        return bundled_records(source)
    path = Path(source)
    readers = {".txt": _read_text, ".jsonl": _read_json_lines, ".csv": _read_csv}
    kind = path.suffix.lower()
    if kind not in readers:
        raise ValueError(
            f"prompt file {source!r} ends in {path.suffix or 'nothing'!r}; accepted are "
            f"{', '.join(readers)} and the bundled {', '.join(bundled_sources())}"
        )
    if path.is_dir():
        raise ValueError(f"prompt file {source!r} is a folder; name a file in it")
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {source!r} does not exist (cwd is {Path.cwd()})")
    rows = readers[kind](_lines(path, source), source)
    records = list(_valid(rows, "prompt" if kind == ".txt" else column, source))
    if not records:
        raise ValueError(f"prompt file {source!r} holds no prompt")
    _warn_of_what_was_hardly_meant([record["prompt"] for record in records], kind, source)
    return records


def _warn_of_what_was_hardly_meant(texts: Sequence[str], kind: str, source: str) -> None:
    """Say that texts occur more than once, or look like comments, which no format here has."""
    different = len(set(texts))
    if different < len(texts):
        warnings.warn(
            f"{source}: {len(texts)} prompts, {different} of them different", stacklevel=3
        )
    marked = [text for text in texts if text.startswith("#")]
    comments = marked if len(marked) == len(texts) else [t for t in marked if t[1:2] in ("", " ")]
    if comments and kind == ".txt":
        warnings.warn(
            f"{source}: {len(comments)} of {len(texts)} prompts start with '#' and are drawn like "
            "the others; a .txt file has no comments: remove what is none of your prompts",
            stacklevel=3,
        )


def _lines(path: Path, source: str) -> list[str]:
    """The file's lines: what a line feed ends, with or without a carriage return before it."""
    text = read_utf8(path, source)
    if "\r" in text and "\n" not in text:
        raise ValueError(
            f"{source}: the lines end with a carriage return alone and would be one prompt; save "
            "the file with line feeds (tr '\\r' '\\n')"
        )
    # Not splitlines: a text may hold a line separator (U+2028) or a form feed.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


def _read_text(lines: Sequence[str], source: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _read_json_lines(lines: Sequence[str], source: str) -> Iterator[Row]:
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("["):
        raise ValueError(f"{source} is a JSON array; a .jsonl file has one object a line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield number, f"not JSON ({error})"
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


def _read_csv(lines: Sequence[str], source: str) -> Iterator[Row]:
    # Strict: what stands beside a quoted field, or a quote without end, would change a text unseen.
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    header: list[str] | None = None
    with _fields_of_any_length():
        while True:
            first = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{source}:{first}: not CSV ({error}); put a text that holds a comma, a quote "
                    "or a line break into quotes, and double the quotes inside"
                ) from None
            if header is None:
                header = fields
                if len(set(header)) != len(header):
                    raise ValueError(f"{source}:{first}: two columns have one name: {header}")
            elif len(fields) > len(header):
                yield (
                    first,
                    f"{len(fields)} fields for the {len(header)} columns {', '.join(header)}; put "
                    "a text that holds a comma into quotes",
                )
            elif fields:
                # A row may end early; what it leaves out is unknown, not an empty text.
                yield first, dict(zip(header, fields, strict=False))


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a field."""
    limit = csv.field_size_limit(sys.maxsize if sys.platform != "win32" else 2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _valid(rows: Iterable[Row], column: str, source: str) -> Iterator[dict[str, Any]]:
    fields: Sequence[str] | None = None
    for number, record in rows:
        if isinstance(record, dict) and fields is None:
            fields = sorted(str(name) for name in record)
            if column not in record:
                raise ValueError(
                    f"{source} has no column {column!r}; it has {fields}; name the one that holds "
                    "the prompt as data.column"
                )
        reason = record if isinstance(record, str) else _unusable(record.get(column), column)
        if isinstance(record, str) or reason is not None:
            warnings.warn(f"{source}:{number}: skipped, {reason}", stacklevel=2)
            continue
        rest = {str(name): value for name, value in record.items() if name != column}
        yield {**rest, "prompt": record[column]}


def _unusable(prompt: Any, column: str) -> str | None:
    """Why something is no prompt, or None if it is one."""
    if prompt is None:
        return f"it has no {column!r}"
    if not isinstance(prompt, str):
        return f"{column!r} is {prompt!r:.40}, no text"
    if not prompt.strip():
        return f"{column!r} is empty"
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        return f"{column!r} holds half of a surrogate pair, which is no character"
    return None
