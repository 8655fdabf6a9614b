"""Findings: what a check found, and how it is printed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]

MOST_WARNINGS = 3
"""Different warnings of Python that are printed; the same one often comes with each call."""

_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: What was looked at.
        status: ``ok``, ``warning`` (works, but read it) or ``failed`` (fix it first).
        detail: What was found, and what to do unless it is ok.
    """

    name: str
    status: Status
    detail: str


def report(findings: Iterable[Finding], name_width: int = 16) -> bool:
    """Print the findings as they come, one a line.

    Args:
        findings: What was found; consumed lazily, so that a slow check does not hold up the others.
        name_width: Columns that names take.

    Returns:
        Whether none has failed.
    """
    healthy = True
    for finding in findings:
        name = f" {finding.name:<{name_width}}"
        _print((f"{finding.status:<8}", _STYLES[finding.status]), f"{name} {finding.detail}")
        healthy = healthy and finding.status != "failed"
    return healthy


def report_and_count(findings: Iterable[Finding], name_width: int = 16) -> bool:
    """Print the findings, then how many there were of each kind and what Python warned of.

    Args:
        findings: What was found; consumed lazily.
        name_width: Columns that names take.

    Returns:
        Whether none has failed.
    """
    counts = dict.fromkeys(_STYLES, 0)

    def counted() -> Iterator[Finding]:
        for finding in findings:
            counts[finding.status] += 1
            yield finding

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        healthy = report(counted(), name_width)
    _print(", ".join(f"{count} {status}" for status, count in counts.items()))
    texts = list(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    for text in texts[:MOST_WARNINGS]:
        _print((f"python warned: {text}", "yellow"))
    if len(texts) > MOST_WARNINGS:
        _print(f"and warned {len(texts) - MOST_WARNINGS} times more")
    return healthy


def _print(*parts: str | tuple[str, str]) -> None:
    """Print one line of texts, some of them with a style."""
    # Imported here: `aegpo --version` imports this file and answers before rich is loaded.
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False, soft_wrap=True).print(Text.assemble(*parts))
