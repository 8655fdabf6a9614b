"""Reads back what Lightning's own loggers wrote: TensorBoard event files or `metrics.csv`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CSV_LOG = "metrics.csv"
"""What Lightning's CSVLogger writes; a resumed run puts the table before aside, numbered."""
EVENT_FILES = "events.out.tfevents.*"
"""What TensorBoard's writer leaves, one file a start."""


def read_scalars(folder: Path, tags: Sequence[str]) -> dict[str, dict[int, float]]:
    """Read some tags of one run.

    A run that was interrupted and resumed has several event files, in which iterations between the
    checkpoint and the interruption occur twice; the later file counts.

    Args:
        folder: The run's log folder.
        tags: Names as `docs/logging.md` lists them.

    Returns:
        For each tag its value by iteration; empty for a tag that was never logged.
    """
    values: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    for table in _tables(folder):
        _read_csv(table, values)
    for events in event_files(folder):
        _read_events(events, values)
    return values


def read_csv_tables(folder: Path) -> dict[str, dict[int, float]]:
    """Read all that a CSVLogger wrote.

    Args:
        folder: The run's log folder.

    Returns:
        For each tag its value by iteration.
    """
    tags: set[str] = set()
    for table in _tables(folder):
        with table.open(newline="") as file:
            tags.update(next(csv.reader(file), []))
    values: dict[str, dict[int, float]] = {tag: {} for tag in tags - {"step", "epoch", ""}}
    for table in _tables(folder):
        _read_csv(table, values)
    return {tag: by_iteration for tag, by_iteration in values.items() if by_iteration}


def _tables(folder: Path) -> list[Path]:
    """The tables of a run, oldest first."""
    stem, suffix = Path(CSV_LOG).stem, Path(CSV_LOG).suffix
    earlier = {
        path.stem.removeprefix(f"{stem}_"): path for path in folder.glob(f"{stem}_*{suffix}")
    }
    numbers = sorted(int(number) for number in earlier if number.isdecimal())
    tables = [*(earlier[str(number)] for number in numbers), folder / CSV_LOG]
    return [table for table in tables if table.is_file()]


def _read_csv(table: Path, values: dict[str, dict[int, float]]) -> None:
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            for tag, by_iteration in values.items():
                if row.get(tag) and row.get("step"):
                    by_iteration[int(float(row["step"]))] = float(row[tag])


def read_event_file(events: Path, images: int = 1, tensors: int = 1) -> EventAccumulator:
    """Read one event file.

    Args:
        events: The file.
        images: Pictures that are kept of a tag, 0 for all.
        tensors: Texts and other tensors that are kept of a tag, 0 for all.

    Returns:
        What is in it, all of its scalars.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = {"scalars": 0, "images": images, "histograms": 1, "tensors": tensors}
    accumulator = EventAccumulator(str(events), size_guidance=kept)
    accumulator.Reload()
    return accumulator


def event_files(folder: Path) -> list[Path]:
    """The event files of a run, oldest first."""
    return sorted(folder.glob(EVENT_FILES))


def _read_events(events: Path, values: dict[str, dict[int, float]]) -> None:
    accumulator = read_event_file(events)
    logged = set(accumulator.Tags()["scalars"])
    for tag, by_iteration in values.items():
        for event in accumulator.Scalars(tag) if tag in logged else []:
            by_iteration[int(event.step)] = float(event.value)
