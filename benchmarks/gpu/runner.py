"""Runs parts in processes of their own, with limits, and hands on their rows as they come."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from gpu.parts import Part, Settings

STARTING = 90.0
"""Seconds that a process may take before its first item begins: imports, and the driver."""

SLOWER = 4.0
"""How much longer a part may take on a CPU, with small networks."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        part: Name of the part.
        item: What it tried.
        check: What was looked at.
        value: What was found.
        ok: The verdict, None for a figure without one.
        wanted: What would have been accepted.
    """

    part: str
    item: str
    check: str
    value: Any
    ok: bool | None
    wanted: str = ""


def run_parts(
    parts: Sequence[Part], settings: Settings, seconds: float, tell: Callable[[Row], None]
) -> list[Row]:
    """Run all parts; one that fails, hangs or dies costs its own items.

    Args:
        parts: What is tried.
        settings: What every item is told; a part's own cap on memory goes before.
        seconds: Time for all of them together; items that have not begun by then are not run.
        tell: Called with every row as it comes.

    Returns:
        All rows.
    """
    rows: list[Row] = []
    until = time.monotonic() + seconds

    def take(row: Row) -> None:
        rows.append(row)
        tell(row)

    for part in parts:
        own = Settings(settings.tiny, settings.cap_gib or part.cap_gib)
        left = list(part.items)
        while left:
            if time.monotonic() > until:
                for item in left:
                    limit = f"the {seconds / 60:.0f} minutes were over"
                    take(Row(part.name, item, "not run", limit, False))
                break
            batch = left if part.one_process else left[:1]
            left = left[_run_process(part, own, batch, until, take) :]
    return rows


@dataclass
class _Clock:
    """When the process has to have gone on, in the time of `time.monotonic`."""

    limit: float


def _run_process(
    part: Part, settings: Settings, items: Sequence[str], until: float, take: Callable[[Row], None]
) -> int:
    """Try items in one process.

    Returns:
        How many are done with: those that ended, and the one at which the process died.
    """
    begun, running, clock = 0, False, _Clock(time.monotonic() + STARTING)
    died = ""
    with tempfile.TemporaryFile("w+") as errors:
        child = _start(part, settings, items, errors)
        try:
            for line in _lines(child, lambda: min(clock.limit, until)):
                row = _parsed(part, line)
                if row is None:
                    continue
                if row.check == "begin":
                    seconds = part.seconds * (SLOWER if settings.tiny else 1)
                    begun, running, clock.limit = begun + 1, True, time.monotonic() + seconds
                    continue
                if row.check == "end":
                    running, clock.limit = False, time.monotonic() + STARTING
                    row = Row(part.name, row.item, "seconds", row.value, None)
                take(row)
            status = child.wait(timeout=10)
            if status != 0 or begun < len(items) or running:
                died = f"ended with status {status}"
        except (TimeoutError, subprocess.TimeoutExpired):
            late = time.monotonic() > until
            died = "stopped: the time for all is over" if late else "stopped at its time limit"
        finally:
            _kill(child)
        if not died:
            return begun
        # Between two items it is the coming one's fault: it was being prepared.
        culprit = begun - 1 if running else min(begun, len(items) - 1)
        take(_death(part, items[culprit], died, errors))
        return culprit + 1


def _start(part: Part, settings: Settings, items: Sequence[str], errors: IO[str]) -> Any:
    script = Path(__file__).with_name("run_items.py")
    return subprocess.Popen(
        [
            *(sys.executable, str(script), json.dumps(asdict(part))),
            *(json.dumps(asdict(settings)), *items),
        ],
        stdout=subprocess.PIPE,
        stderr=errors,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _lines(child: Any, deadline: Callable[[], float]) -> Iterator[str]:
    """Lines of a process as they come, raising TimeoutError once the deadline has passed."""
    held = b""
    while True:
        wait = deadline() - time.monotonic()
        if wait <= 0:
            raise TimeoutError
        ready, _, _ = select.select([child.stdout], [], [], min(wait, 1.0))
        if not ready:
            continue
        got = os.read(child.stdout.fileno(), 65536)
        if not got:
            return
        *whole, held = (held + got).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def _parsed(part: Part, line: str) -> Row | None:
    """A row, or None for a line that a library wrote past Python."""
    try:
        return Row(part=part.name, **json.loads(line))
    except (ValueError, TypeError):
        return None


def _death(part: Part, item: str, how: str, errors: IO[str]) -> Row:
    errors.seek(0)
    last = [line.strip() for line in errors.read().splitlines() if line.strip()]
    said = f"; it said: {last[-1][:160]}" if last else ""
    return Row(part.name, item, "process", how + said, False)


def _kill(child: Any) -> None:
    """End a process and all that it started; a hung one ignores milder signals."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=10)
    child.stdout.close()
