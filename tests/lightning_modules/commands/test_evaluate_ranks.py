"""`aegpo evaluate` on two real processes, killed in the middle: the result of one, to the byte."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rank_pair import SHAPES, TWO, Ranks, on_ranks

OPTIONS = (
    *("evaluate", "--config", str(SHAPES), "--out", "out", "--limit", "4", "--num_steps", "2"),
    *("--images_per_prompt", "2", "--prompts_at_once", "1"),
)


def test_two_killed_ranks_go_on_to_the_result_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    on_ranks(one, (one, OPTIONS), ranks=1)

    begun = Ranks(two, [(two, [*OPTIONS, *TWO])])
    limit = time.monotonic() + 120
    while not (done := list(two.glob("out/scores/base/*.json"))):
        assert time.monotonic() < limit, begun.read(0)
        time.sleep(0.005)
    for rank in range(2):
        os.kill(begun.pid(rank), signal.SIGKILL)
    begun.ended(30)
    assert not (two / "out/results.json").exists()
    written = {file.name: file.stat().st_mtime_ns for file in done}

    on_ranks(two, (two, [*OPTIONS, *TWO]))
    for name in ("results.json", "grid.png"):
        assert (one / "out" / name).read_bytes() == (two / "out" / name).read_bytes()
    for name, before in written.items():
        assert (two / "out/scores/base" / name).stat().st_mtime_ns == before
    images = {path.relative_to(one): path.read_bytes() for path in one.glob("out/images/*/*.png")}
    assert len(images) == 8
    for name, content in images.items():
        assert (two / name).read_bytes() == content
