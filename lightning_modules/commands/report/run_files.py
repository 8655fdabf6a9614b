"""What a run left in its folder, read back: numbers, pictures, decisions, config, environment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from aegpo.study.decision_log import Decision, read_decisions
from aegpo.utilities.files import read_utf8
from aegpo.utilities.secrets import without_secrets
from lightning_modules.commands.run_logs import (
    CSV_LOG,
    EVENT_FILES,
    event_files,
    read_csv_tables,
    read_event_file,
)

PICTURES = ("entropy/curve", "entropy/by_layer")
"""Figures in event files that the page shows over time."""
TABLES = ("allocation/prompts", "entropy/prompts")
"""Tables of prompts, of which the page shows the first that there is, as it was last."""
Series = dict[int, float]
"""A number by iteration."""


@dataclass
class RunFiles:
    """A run's files.

    Args:
        folder: Where they are.
        name: What the run is called on the page.
        scalars: Every logged number by tag.
        pictures: PNG files by tag and iteration: `samples/held_out`, and `PICTURES`.
        tables: The latest of `TABLES` by tag: after which iteration, and Markdown.
        decisions: What `callbacks.DecisionLog` wrote.
        config: The resolved config, without secrets.
        environment: Versions and machine, by name.
    """

    folder: Path
    name: str
    scalars: dict[str, Series] = field(default_factory=dict)
    pictures: dict[str, dict[int, bytes]] = field(default_factory=dict)
    tables: dict[str, tuple[int, str]] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def series(self, tag: str) -> Series:
        """A tag's numbers; empty if it was never logged."""
        return self.scalars.get(tag, {})

    def last(self, tag: str) -> float | None:
        """A tag's latest number."""
        values = self.series(tag)
        return values[max(values)] if values else None


def read_run(folder: Path, name: str) -> RunFiles:
    """Read a run.

    Args:
        folder: Its log folder.
        name: What it is called.

    Returns:
        What is there; a part that cannot be read is left out.

    Raises:
        ValueError: If no training logged anything there.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the log folder of a run")
    run = RunFiles(folder, name)
    for events in event_files(folder):
        _read_events(events, run)
    for tag, values in read_csv_tables(folder).items():
        run.scalars.setdefault(tag, {}).update(values)
    if not run.series("reward/mean") and not any(tag.startswith("val/") for tag in run.scalars):
        inside = sorted({file.parent for kind in _LOGS for file in folder.rglob(kind)})
        near = f"; {inside[0]} has some" if inside else ""
        raise ValueError(f"{folder} holds no event files and no {CSV_LOG} of a training{near}")
    _read_pictures(folder / "samples", "held_out", "samples/held_out", run)
    for tag in PICTURES:  # beside a CSV table
        _read_pictures(folder / "figures", tag.replace("/", "_"), tag, run)
    for tag in TABLES:
        _read_table(folder / "figures", tag, run)
    log = folder / "decisions.jsonl"
    if log.is_file():
        run.decisions = read_decisions(log)
    config = _mapping(folder / "config.yaml")
    run.config = without_secrets({key: config[key] for key in _SECTIONS if key in config})
    run.environment = {k: str(v) for k, v in _mapping(folder / "environment.yaml").items()}
    return run


_LOGS = (EVENT_FILES, CSV_LOG)
_SECTIONS = ("seed_everything", "trainer", "model", "data")
MOST_PICTURES = 12
"""Pictures of one kind on a page, which is one file."""


def evenly(steps: Sequence[int], most: int = MOST_PICTURES) -> list[int]:
    """Some of many, the first and the last among them, at even distances.

    Args:
        steps: All of them, in order.
        most: How many at most; two at least.

    Returns:
        Some of them.

    Examples:
        >>> evenly([0, 1, 2, 3, 4, 5, 6], 3), evenly([4, 5], 3)
        ([0, 3, 6], [4, 5])
    """
    if len(steps) <= most:
        return list(steps)
    return [steps[round(number * (len(steps) - 1) / (most - 1))] for number in range(most)]


def _mapping(file: Path) -> dict[str, Any]:
    """A YAML file's settings; none for what is not there, or is no mapping of plain values."""
    try:
        content = yaml.safe_load(read_utf8(file, str(file)))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_table(folder: Path, tag: str, run: RunFiles) -> None:
    """Take the latest of a tag's Markdown files, which stand beside a CSV table."""
    named = re.compile(rf"{re.escape(tag.replace('/', '_'))}_(\d+)\.md")
    shown = {int(m[1]): file for file in folder.glob("*.md") if (m := named.fullmatch(file.name))}
    if shown:
        text = shown[max(shown)].read_text(encoding="utf-8", errors="replace")
        run.tables[tag] = (max(shown), text)


def _read_pictures(folder: Path, stem: str, tag: str, run: RunFiles) -> None:
    """Take a tag's PNG files, in place of what event files have of it: they are whole."""
    named = re.compile(rf"{re.escape(stem)}_(\d+)\.png")
    files = folder.glob(f"{stem}_*.png")
    shown = {int(found[1]): file for file in files if (found := named.fullmatch(file.name))}
    if shown:
        run.pictures[tag] = {when: shown[when].read_bytes() for when in evenly(sorted(shown))}


def _read_events(events: Path, run: RunFiles) -> None:
    accumulator = read_event_file(events, images=0, tensors=0)
    tags = accumulator.Tags()
    for tag in tags["scalars"]:
        values = run.scalars.setdefault(tag, {})
        values.update((int(e.step), float(e.value)) for e in accumulator.Scalars(tag))
    for tag in (*PICTURES, "samples/held_out"):
        if tag in tags["images"]:
            drawn = {int(e.step): e.encoded_image_string for e in accumulator.Images(tag)}
            both = run.pictures.get(tag, {}) | drawn
            run.pictures[tag] = {when: both[when] for when in evenly(sorted(both))}
    for tag in TABLES:
        for name in (one for one in tags["tensors"] if one.startswith(f"{tag}/")):
            latest = accumulator.Tensors(name)[-1]
            for text in latest.tensor_proto.string_val[:1]:
                run.tables[tag] = (int(latest.step), text.decode("utf-8", errors="replace"))


def prompt_texts(run: RunFiles) -> dict[int, str]:
    """Find the texts of the prompts by their rows in the data.

    Only data modules of this package are built: a config that a stranger wrote may name any class.

    Args:
        run: The run.

    Returns:
        Text by row; empty where the prompt files are no longer there.
    """
    data = run.config.get("data") or {}
    if str(data.get("class_path")) not in _OUR_DATA:
        return {}
    try:
        module = import_module("datamodules").PromptDataModule(**(data.get("init_args") or {}))
    except (OSError, ValueError, TypeError):
        return {}
    return {row: str(r["prompt"]) for row, r in enumerate(module.train_prompts.records)}


_OUR_DATA = (
    "datamodules.PromptDataModule",
    "datamodules.prompt_datamodule.PromptDataModule",
)


def table_rows(markdown: str) -> Iterator[list[str]]:
    """Read the cells of a table that `markdown_table` wrote, its header and rule left out."""
    for line in markdown.strip().split("\n")[2:]:
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        yield [_plain(cell.strip()) for cell in cells]


def _plain(cell: str) -> str:
    """The text that `markdown_text` wrote."""
    return unescape(re.sub(r"\\([\\`*_\[\]|])", r"\1", cell))


def decided(decisions: Sequence[Decision]) -> dict[int, dict[str, Any]]:
    """Sum up by prompt what was decided: visits, images and the latest ΔEntropy.

    Args:
        decisions: The log.

    Returns:
        By dataset row `visits`, `images` in all and `delta`, None where none was read.
    """
    found: dict[int, dict[str, Any]] = {}
    for one in decisions:
        delta = None if one.entropy is None else one.entropy.delta
        for place, row in enumerate(one.index.tolist()):
            entry = found.setdefault(row, {"visits": 0, "images": 0, "delta": None})
            entry["visits"] += 1
            entry["images"] += int(one.group_sizes[place])
            if delta is not None:
                entry["delta"] = float(delta[place])
    return found


def run_names(folders: Sequence[Path]) -> list[str]:
    """Name runs by what differs in their paths.

    Args:
        folders: Their folders, one at least.

    Returns:
        The ends of their paths, as long as it takes to tell them apart.

    Examples:
        >>> run_names([Path("runs/a/seed_0"), Path("runs/b/seed_0")])
        ['a/seed_0', 'b/seed_0']
        >>> run_names([Path("runs/shapes")])
        ['shapes']
    """
    parts = [folder.absolute().parts for folder in folders]
    length = next(
        (
            n
            for n in range(1, max(map(len, parts)) + 1)
            if len({p[-n:] for p in parts}) == len(parts)
        ),
        1,
    )
    return ["/".join(part[-length:]) for part in parts]
