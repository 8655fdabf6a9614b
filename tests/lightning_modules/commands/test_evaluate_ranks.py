"""`aegpo evaluate` on two real processes: the result of one, to the byte.

That they are killed in the middle and go on costs 16 seconds of a core where this costs nine, and
is run with ALL_RANK_RUNS=1 in the environment.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from cli_runs import ROOT, configs
from rank_pair import SHAPES, TWO, Ranks, on_ranks

DRAWN = (
    *("--out", "out", "--num_steps", "2", "--images_per_prompt", "2", "--prompts_at_once", "1"),
)
ON_CPU = """
trainer: {accelerator: cpu, precision: 32-true}
model:
  init_args:
    reward: {class_path: aegpo.rewards.JpegIncompressibility}
    policy:
      init_args: {dtype: float32, lora_rank: 2, resolution: 16, max_sequence_length: 8}
"""


def assert_same(one: Path, two: Path, images: int) -> None:
    """Two evaluations of the base hold the same bytes."""
    drawn = [path.relative_to(one) for path in one.glob("out/images/*/*.png")]
    assert len(drawn) == images
    assert len([*two.glob("out/images/*/*.png")]) == images
    for name in (Path("out/results.json"), Path("out/grid.png"), *drawn):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Of one process, and of two."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    return one, two


def test_two_ranks_draw_and_score_what_one_does(
    folders: tuple[Path, Path], tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    one, two = folders
    (tmp_path / "on_cpu.yaml").write_text(ON_CPU)
    (tmp_path / "prompts.txt").write_text("a red circle\nein Kreis ★\na square\n")
    options = [
        *("evaluate", *configs(ROOT / "configs/models/sd35_medium.yaml", tmp_path / "on_cpu.yaml")),
        *("--model.policy.pretrained", str(tiny_sd3_folder)),
        *("--suite", str(tmp_path / "prompts.txt"), *DRAWN),
    ]
    on_ranks(one, (one, options), ranks=1)
    on_ranks(two, (two, [*options, *TWO]))
    assert_same(one, two, images=6)


@pytest.mark.skipif(os.environ.get("ALL_RANK_RUNS") != "1", reason="asked for by ALL_RANK_RUNS=1")
def test_two_killed_ranks_go_on_to_the_result_of_one(folders: tuple[Path, Path]) -> None:
    one, two = folders
    options = ("evaluate", "--config", str(SHAPES), "--limit", "4", *DRAWN)
    on_ranks(one, (one, options), ranks=1)

    begun = Ranks(two, [(two, [*options, *TWO])])
    limit = time.monotonic() + 120
    while not (done := list(two.glob("out/scores/base/*.json"))):
        assert time.monotonic() < limit, begun.read(0)
        time.sleep(0.005)
    for rank in range(2):
        os.kill(begun.pid(rank), signal.SIGKILL)
    begun.ended(30)
    assert not (two / "out/results.json").exists()
    written = {file: file.stat().st_mtime_ns for file in done}

    on_ranks(two, (two, [*options, *TWO]))
    assert_same(one, two, images=8)
    assert {file: file.stat().st_mtime_ns for file in done} == written
