"""Suites of prompts: ours, and files of the public benchmarks in their own formats."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegpo.evaluation.protocols import PLAIN, PROTOCOLS, Protocol, guess_protocol, missing_suite
from aegpo.prompts import category_of
from aegpo.prompts.files import read_prompts
from aegpo.utilities.files import read_utf8


@dataclass(frozen=True)
class Suite:
    """Prompts with how they are to be used.

    Attributes:
        source: As it was given.
        protocol: Key of `PROTOCOLS`.
        prompts: The texts.
        metadata: What the rewards read of each, `category` where there is one.
    """

    source: str
    protocol: str
    prompts: list[str]
    metadata: list[dict[str, Any]]

    @property
    def about(self) -> Protocol:
        """How the benchmark is run."""
        return PROTOCOLS[self.protocol]

    @property
    def categories(self) -> list[str]:
        """The category of each prompt, "all" where it has none."""
        return [category_of(one) for one in self.metadata]

    @property
    def fingerprint(self) -> str:
        """Of texts and metadata in their order: two suites with the same are the same."""
        content = json.dumps([self.prompts, self.metadata], sort_keys=True, default=str)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_suite(
    source: str, protocol: str = "auto", column: str | None = None, limit: int | None = None
) -> Suite:
    """Read a suite.

    Args:
        source: A bundled split (`shapes:heldout`), a file of prompts, or the file or folder of a
            public benchmark.
        protocol: Key of `PROTOCOLS`, or "auto" for what the name says.
        column: Field that holds the prompt; the benchmark's own, or `prompt`, by default.
        limit: The first so many prompts alone; None for all.

    Returns:
        The suite.

    Raises:
        FileNotFoundError: If it is not there, with where it comes from.
        ValueError: If it cannot be read as what it is said to be.
    """
    mistake = missing_suite(source, protocol)
    if mistake is not None:
        kind = ValueError if mistake.startswith("--protocol") else FileNotFoundError
        raise kind(mistake)
    name = guess_protocol(source) if protocol == "auto" else protocol
    return suite_of(_records(source, name, column)[:limit], source, name)


def suite_of(records: Sequence[Mapping[str, Any]], source: str, protocol: str = PLAIN) -> Suite:
    """Make a suite of prompts that were read already.

    Args:
        records: Each a `prompt` and what belongs to it.
        source: What they are called.
        protocol: Key of `PROTOCOLS`.

    Returns:
        The suite.

    Raises:
        ValueError: If there is no prompt.
    """
    if not records:
        raise ValueError(f"--suite {source} holds no prompt; give {PROTOCOLS[protocol].source}")
    metadata = [{key: record[key] for key in record if key != "prompt"} for record in records]
    return Suite(source, protocol, [str(record["prompt"]) for record in records], metadata)


def _records(source: str, name: str, column: str | None) -> list[dict[str, Any]]:
    path, about = Path(source).expanduser(), PROTOCOLS[name]
    if name == "t2i_compbench":
        return list(_categories_by_file(path, source))
    if path.is_dir():
        if name != "dpg":
            raise ValueError(f"--suite {source} is a folder; give {about.source}")
        return [_whole_text(file) for file in sorted(path.glob("*.txt"), key=_by_number)]
    if path.suffix.lower() == ".tsv" or (path.suffix.lower() == ".csv" and name != PLAIN):
        return _table(path, source, name, column)
    records = read_prompts(source, column or "prompt")
    for record in records:
        if about.category in record:
            record.setdefault("category", record[about.category])
    return records


def _by_number(file: Path) -> tuple[int, str]:
    return (int(file.stem) if file.stem.isdecimal() else 0, file.name)


def _whole_text(file: Path) -> dict[str, Any]:
    """One prompt a file; its lines are one."""
    return {"prompt": " ".join(read_utf8(file, str(file)).split()), "item_id": file.stem}


def _categories_by_file(path: Path, source: str) -> Iterator[dict[str, Any]]:
    """Every line is a prompt; the file's name is the category."""
    files = sorted(path.glob("*_val.txt")) if path.is_dir() else [path]
    for file in files:
        if file.suffix != ".txt":
            raise ValueError(
                f"--suite {source} is no .txt file; give {PROTOCOLS['t2i_compbench'].source}"
            )
        for record in read_prompts(str(file), "prompt"):
            yield {**record, "category": file.stem.removesuffix("_val")}


def _table(path: Path, source: str, name: str, column: str | None) -> list[dict[str, Any]]:
    """A table with a header; rows of one `item_id` are questions about one prompt."""
    about = PROTOCOLS[name]
    tabs = path.suffix.lower() == ".tsv"
    text = read_utf8(path, source)
    # In a .tsv a quote is a character of the prompt.
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
    )
    header = list(reader.fieldnames or [])
    wanted = [column] if column else [*about.columns, "prompt"]
    found = next((one for one in wanted if one in header), None)
    if found is None:
        raise ValueError(
            f"--suite {source} has the columns {', '.join(header) or 'of no header'}, and none of "
            f"{', '.join(wanted)}; give {about.source}"
        )
    records: dict[str, dict[str, Any]] = {}
    for row in reader:
        prompt = " ".join((row.get(found) or "").split())
        if not prompt:
            continue
        rest = {str(key).lower(): value for key, value in row.items() if key and key != found}
        key = str(rest.get("item_id") or len(records))
        question = rest.pop("question_natural_language", None)
        known = records.setdefault(key, {**rest, "prompt": prompt})
        if question:
            known.setdefault("questions", []).append(question)
    return list(records.values())
