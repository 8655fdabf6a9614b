"""Kinds of shipped configs on two real ranks against one: tensors, logged numbers, costs.

One process runs the list of configs, two run it together; then each pair of runs is compared.
"""

from __future__ import annotations

from pathlib import Path

from cli_runs import ROOT
from rank_pair import SHAPES, TWO, Command, fit, on_ranks
from rank_trace import assert_same_run

SIZES = ("--model.allocator.low", "2", "--model.allocator.high", "4")
RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: overlays, options
    "quickstart": ((), SIZES),
}


def overlay(name: str) -> Path:
    return ROOT / f"configs/overlays/{name}.yaml"


def shapes_run(folder: Path, name: str, *ranks: str) -> Command:
    overlays, options = RUNS[name]
    return fit(folder / name, *options, *ranks, files=(SHAPES, *map(overlay, overlays)))


def predict(folder: Path, *ranks: str) -> Command:
    """The command that draws and scores the base's held-out images."""
    place, arguments = fit(folder / "predict", *ranks, files=(SHAPES,))
    return place, ["predict", *arguments[1:]]


def test_kinds_of_training(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    on_ranks(one, *(shapes_run(one, name) for name in RUNS), predict(one), ranks=1)
    on_ranks(two, *(shapes_run(two, name, *TWO) for name in RUNS), predict(two, *TWO))
    for name in RUNS:
        assert_same_run(one / name / "trace.json", two / name / "trace.json")
    grids = [sorted((folder / "quickstart").rglob("samples/*.png")) for folder in (one, two)]
    assert [grid.name for grid in grids[0]] == [grid.name for grid in grids[1]]
    assert grids[0][0].read_bytes() == grids[1][0].read_bytes()  # of the base: the same images
    outs = [next(folder.rglob("predictions")) for folder in (one, two)]
    assert len(list(outs[0].glob("*.png"))) == 5
    assert folder_content(outs[0]) == folder_content(outs[1])


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
