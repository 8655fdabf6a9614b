"""The quickstart on two real ranks against one: all tensors, all logged numbers, the costs."""

from __future__ import annotations

from pathlib import Path

from cli_runs import ROOT, configs
from rank_pair import TWO, on_ranks
from rank_trace import assert_same_run

SHAPES = ROOT / "configs/shapes.yaml"
SMALL = """
trainer:
  max_epochs: 1
  check_val_every_n_epoch: 1
  without_callbacks: [RolloutProgressBar]   # its lines are most of what a rank prints
  callbacks+:
    - class_path: rank_trace.RankTrace
      init_args: {file: trace.json}
model:
  init_args:
    num_steps: 5
    micro_batch_size: 7
    optimizer: {init_args: {eps: 1.0e-3}}   # or Adam makes whole steps of a gradient's rounding
data:
  init_args:
    batch_size: 4
    batches_per_epoch: 2
    val_images: 5           # in batches of 4 and 1: the second rank has none of the last
    val_batch_size: 4
"""


def fit(folder: Path, *options: str, files: tuple[Path, ...] = (SHAPES,)) -> list[str]:
    """The arguments of a small run of some configs, with groups of 2 and of 4 images."""
    small = folder / "small.yaml"
    small.write_text(SMALL)
    sizes = ("--model.allocator.low", "2", "--model.allocator.high", "4")
    return ["fit", *configs(*files, small), *sizes, *options]


def test_the_quickstart_on_two_ranks(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    on_ranks(one, fit(one), ranks=1)
    on_ranks(two, fit(two, *TWO))
    assert_same_run(one / "trace.json", two / "trace.json")
    grids = [sorted(folder.rglob("samples/*.png")) for folder in (one, two)]
    assert [grid.name for grid in grids[0]] == [grid.name for grid in grids[1]]
    assert grids[0][0].read_bytes() == grids[1][0].read_bytes()  # of the base: the same images
