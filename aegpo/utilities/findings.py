"""Findings: what a check found, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


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


def report(findings: Iterable[Finding]) -> bool:
    """Print the findings as they come, one a line.

    Args:
        findings: What was found; consumed lazily, so that a slow check does not hold up the others.

    Returns:
        Whether none has failed.
    """
    healthy = True
    for finding in findings:
        print(f"{finding.status:<8} {finding.name:<16} {finding.detail}", flush=True)
        healthy = healthy and finding.status != "failed"
    return healthy
