"""`make gpu`: a part that fails costs its own rows, and the status."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu.faster import compilations, faster  # noqa: E402
from gpu.parts import PARTS, Part, Settings  # noqa: E402
from gpu.runner import Row, run_parts  # noqa: E402
from gpu_check import main, summary  # noqa: E402

ITEMS = ("good", "raises", "nan", "dies", "hangs", "good again")


def part(*items: str, one_process: bool = True, seconds: float = 1.0) -> Part:
    return Part("faults", "gpu_faults:fault", items, seconds, one_process)


def test_whatever_happens_to_an_item_the_others_are_tried() -> None:
    told: list[Row] = []
    start = time.monotonic()
    rows = run_parts([part(*ITEMS)], Settings(tiny=True), 300.0, told.append)
    assert time.monotonic() - start < 200
    assert rows == told
    verdicts = {
        item: [(row.check, row.ok) for row in rows if row.item == item and row.check != "seconds"]
        for item in ITEMS
    }
    assert verdicts == {
        "good": [("tiny", True), ("figure", None)],
        "raises": [("error", False)],
        "nan": [("share", False)],
        "dies": [("before", True), ("process", False)],
        "hangs": [("before", True), ("process", False)],
        "good again": [("tiny", True), ("figure", None)],
    }
    said = {row.item: str(row.value) for row in rows if row.ok is False}
    assert said["raises"] == "RuntimeError: the card says no"
    assert "status -9" in said["dies"] and "time limit" in said["hangs"]
    lines = summary(rows).splitlines()
    assert len(lines) == 2 + len(ITEMS)
    assert "| FAILED; process: ended with status -9" in lines[5]


def test_what_the_time_does_not_suffice_for_is_not_run_and_fails() -> None:
    rows = run_parts([part("good")], Settings(tiny=True), 0.0, lambda row: None)
    assert [(row.check, row.ok) for row in rows] == [("not run", False)]


def test_parts_and_items_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(one.name in listed and set(one.items) <= set(listed.split()) for one in PARTS)
    with pytest.raises(SystemExit, match="--items sd1; there are Flux Flux2"):
        main(["--tiny", "--parts", "families-fp32", "--items", "sd1"])


@pytest.mark.slow
def test_a_family_and_a_full_size_pass_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    ran = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "gpu_check.py"), "--tiny", "--json", str(file)),
            *("--parts", "families-fp32", "full-24gb", "--items", "Flux"),
            "sd35_medium",
        ],
        capture_output=True,
        text=True,
        timeout=560,
        cwd=tmp_path,
    )
    found = json.loads(file.read_text())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    checks = {row["check"] for row in found["rows"] if row["ok"]}
    assert {"rollout against pipeline", "first ratio", "resume", "export"} <= checks
    assert "gradients of adapters" in checks and "gradient norm" in checks
    assert found["card"] is None and found["versions"]["torch"] in ran.stdout
    assert "0 failed" in ran.stdout


def test_compiled_blocks_make_no_graph_once_they_are_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced, and no kernel is made of them."""
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend="eager"))
    rows: dict[str, Any] = {}
    faster("compiled_blocks", Settings(tiny=True), lambda check, *told: rows.update({check: told}))
    assert rows.pop("graphs and compiled frames, warm and later")[1:] == (True, "no new one")
    assert all(told[1] for told in rows.values() if len(told) > 1), rows

    counts = [compilations()]
    added = torch.compile(lambda x: x + 1, backend="eager")
    for size in (2, 3):  # the second is made again, and both are noticed
        added(torch.ones(size))
        counts.append(compilations())
    torch._dynamo.reset()
    assert len(set(counts)) == 3, counts


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        assert main([]) == 1
        assert "--tiny tries the same path on the CPU" in capsys.readouterr().out
