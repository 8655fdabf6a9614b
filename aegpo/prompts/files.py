"""Prompt records from a text, JSON Lines or CSV file, or from a bundled set."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aegpo.prompts.sets import bundled_records, bundled_sources, is_bundled


def read_prompts(source: str, column: str) -> list[dict[str, Any]]:
    """Read prompt records; a bad row is skipped with a warning that names its line.

    Args:
        source: A `.txt` file (one prompt a line), a `.jsonl` or `.csv` file, or a split of a
            bundled set: `shapes:train`, `geneval:heldout`, ... (`aegpo.prompts.sets`).
        column: Field that holds the prompt, in `.jsonl` and `.csv` files.

    Returns:
        One dict a prompt with at least the key `prompt`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file holds no prompt, has no such column or an unknown ending, or there
            is no such bundled split.
    """
    if is_bundled(source):
        return bundled_records(source)
    path = Path(source)
    readers = {".txt": _read_text, ".jsonl": _read_json_lines, ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(
            f"prompt file {source!r} ends in {path.suffix or 'nothing'!r}; accepted are "
            f"{', '.join(readers)} and the bundled {', '.join(bundled_sources())}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {source!r} does not exist (cwd is {Path.cwd()})")
    records = list(_valid(readers[path.suffix](path), column, source))
    if not records:
        raise ValueError(f"prompt file {source!r} holds no prompt")
    return records


def _read_text(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not JSON ({error.msg})"
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(newline="", encoding="utf-8") as file:
        for number, record in enumerate(csv.DictReader(file), start=2):
            yield number, dict(record)


def _valid(
    rows: Iterable[tuple[int, dict[str, Any] | str]], column: str, source: str
) -> Iterator[dict[str, Any]]:
    fields: Sequence[str] | None = None
    is_text = source.endswith(".txt")
    for number, record in rows:
        if isinstance(record, str):
            warnings.warn(f"{source}:{number}: skipped, {record}", stacklevel=2)
            continue
        key = "prompt" if is_text else column
        if fields is None:
            fields = sorted(str(name) for name in record)
            if key not in record:
                raise ValueError(f"{source} has no column {key!r}; it has {fields}")
        prompt = record.get(key)
        if not isinstance(prompt, str) or not prompt.strip():
            warnings.warn(f"{source}:{number}: skipped, {key!r} is empty", stacklevel=2)
            continue
        rest = {str(name): value for name, value in record.items() if name != key}
        yield {**rest, "prompt": prompt.strip()}
