"""What is set before torch is imported, and what is said of a machine that others use too."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from aegpo import cores
from aegpo.cores import CoreWatch
from lightning_modules.cli import process

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    code = "import os, sys; from lightning_modules.cli import main as entry; "
    code += "entry._run = lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules); "
    code += "entry.main()"
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", "--config", "configs/shapes.yaml"],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected} False\n"


@pytest.mark.parametrize(
    ("quota", "given", "expected"),
    [
        ("150000 100000", None, "1"),
        ("50000 100000", None, "1"),
        ("max 100000", None, None),
        ("6400000 100000", None, None),
        ("100000 100000", "3", "3"),
    ],
)
def test_a_container_s_quota_limits_the_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quota: str,
    given: str | None,
    expected: str | None,
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    process.respect_cpu_quota()
    assert os.environ.get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize(
    ("free", "threads", "told"),
    [(1.2, 2, "1"), (0.1, 2, "1"), (1.8, 2, None), (5.3, 8, "5"), (0.1, 1, None), (None, 2, None)],
)
def test_too_few_free_cores_are_told_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, free: float | None, threads: int, told: str | None
) -> None:
    monkeypatch.setattr(process._Start, "cores", None)
    assert process.busy_cores(threads) is None, "nobody has looked"
    monkeypatch.setattr(process._Start, "cores", CoreWatch())
    monkeypatch.setattr(CoreWatch, "free", lambda _: free)
    line = process.busy_cores(threads)
    if told is None:
        assert line is None
    else:
        assert line is not None and f"OMP_NUM_THREADS={told} is faster" in line
        assert f"leave {free:.1f} cores free, and {threads} threads" in line


def test_a_warning_of_ours_is_a_line_and_one_of_a_library_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def before(*about: object) -> str:
        return f"before: {about[0]}"

    monkeypatch.setattr(warnings, "formatwarning", before)
    process.tell_warnings_in_a_line()
    told = warnings.formatwarning
    process.tell_warnings_in_a_line()
    assert warnings.formatwarning is told
    for package in ("aegpo", "callbacks", "lightning_modules"):
        file = str(ROOT / package / "x.py")
        assert told("two\nlines", UserWarning, file, 3) == "warning: two lines\n"
    for file in ("/x/aegpo/x.py", str(ROOT / "aegpo_of_mine.py"), __file__):
        assert told("two\nlines", UserWarning, file, 3) == "before: two\nlines"
