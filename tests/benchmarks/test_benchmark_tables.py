"""Every table of `benchmarks/` is printed by its command, small, on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK: dict[str, tuple[list[str], list[str]]] = {
    "bare": ([], ["rollout", "update"]),
    "floor": ([], ["shapes, forward", "shapes, update"]),
    "memory": ([], ["shapes"]),
    "peer": ([], ["flow_grpo"]),
    "phases": ([], ["rollout", "update", "shapes"]),
    "probe": ([], ["off", "rollouts, last block, 8 rows", "trajectory, last block"]),
    "ranks": ([], ["1", "16"]),
    "rewards": ([], ["nothing", "one is killed, and started again", "ShapesMatch"]),
    "recipes": (["sd15"], ["sd15", "sd15 + aesthetic + 1x24gb"]),
    "samplers": (["--images", "2"], ["reference", "UniPC(order=2)"]),
    "start-up": ([], ["the bare import", "--help"]),
    "trees": ([], ["AEGPO: noise at four steps; splits there"]),
    "updates": (["--only", "old means"], ["all scored again", "the later ones"]),
}
"""More options than `--quick`, and first cells that its tables have."""

NOISE = ("Seed set", "GPU available", "Tip:", "Warning", "it/s", "\u2501", "Trainer.fit")
"""What libraries say of themselves, which is no part of a table."""


@pytest.fixture(scope="module")
def tables() -> Iterator[Any]:
    """The module behind `python benchmarks`; what its tables import is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    spec = importlib.util.spec_from_file_location("benchmark_tables", BENCHMARKS / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.insert(0, str(BENCHMARKS))
    yield module
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def first_cells(markdown: str) -> list[str]:
    """The first cell of every row below a heading."""
    parts = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows = [number for number, part in enumerate(parts) if part.type == "tr_open"]
    return [parts[number + 2].content for number in rows if parts[number + 1].type == "td_open"]


@pytest.mark.slow
@pytest.mark.parametrize("table", QUICK)
def test_a_table_is_printed(
    table: str, tables: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    start_up = importlib.import_module("start_up")
    few = {"the bare import": [sys.executable, "-c", "pass"], "--help": start_up.CASES["--help"]}
    monkeypatch.setattr(start_up, "CASES", few)
    monkeypatch.setattr(start_up, "EARLY", tuple(few))  # seconds each, tested elsewhere
    options, cells = QUICK[table]
    assert tables.main([table, "--quick", *options]) == 0
    printed = capsys.readouterr().out
    assert set(cells) <= set(first_cells(printed)), printed
    assert "nan" not in printed
    assert not [one for one in NOISE if one in printed], printed


def test_every_table_is_tried_and_listed(tables: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(QUICK) == set(tables.TABLES) - set(tables.SLOW)
    assert tables.main([]) == 0
    listed = capsys.readouterr().out
    readme = (BENCHMARKS / "README.md").read_text()
    for name, (module, says) in tables.TABLES.items():
        assert f"  {name} " in listed and says in listed
        assert f"python benchmarks {name}" in readme
        assert (BENCHMARKS / f"{module}.py").is_file()
    assert tables.main(["bar"]) == 2
    assert "there is no table 'bar'; there are phases, " in capsys.readouterr().out


def test_functions_of_flow_grpo_that_are_not_there_are_told(tables: Any, tmp_path: Path) -> None:
    peer = importlib.import_module("peer")
    with pytest.raises(SystemExit, match=f"--flow-grpo {tmp_path}: No module named 'flow_grpo"):
        peer.Theirs(tmp_path, object(), 1)
