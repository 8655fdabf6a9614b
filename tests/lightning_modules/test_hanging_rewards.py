"""Rewards that hang, and a judge whose server dies and comes back, in real trainings."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from forkserver import begin, forkserver
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.rewards.guarded import guarded_scores
from aegpo.rewards.jpeg import JpegCompressibility
from aegpo.rewards.time_limit import TookTooLong, stuck_threads, within
from aegpo.rewards.vlm_judge import VLMJudge
from aegpo.rewards.weighted_sum import WeightedSum
from callbacks.canary import Canary
from lightning_modules.cli import lightning_cli
from lightning_modules.cli import main as entry

LIMIT = 0.3
"""Seconds per image: long for `Redness`, also on a busy machine."""


class Hanging(Redness):
    """Never returns for a prompt with a given word, until it is released."""

    name = "hanging"

    def __init__(self, word: str, release: threading.Event) -> None:
        self.word, self.release, self.hung = word, release, 0

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        if any(self.word in prompt for prompt in prompts):
            self.hung += 1
            self.release.wait(600)
        return super().__call__(images, prompts, metadata)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()
    for thread in stuck_threads():
        thread.join(60)
    assert not stuck_threads()


def test_a_call_that_hangs_costs_the_images_of_its_prompt(release: threading.Event) -> None:
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    prompts = ["a", "stuck", "b", "a", "stuck"]
    reward = Hanging("stuck", release)
    reward.time_limit = LIMIT
    with pytest.warns(UserWarning, match=r"took longer than 0\.6 s; 2 of 5 images counted missing"):
        scores = guarded_scores(reward, images, prompts, [{}] * 5).total
    assert scores.isnan().tolist() == [False, True, False, False, True]
    torch.testing.assert_close(scores[[0, 2, 3]], Redness()(images, prompts, [])[[0, 2, 3]])
    assert reward.hung == 2  # as a whole, and by itself
    with pytest.warns(UserWarning, match="2 of 2 images"):
        guarded_scores(reward, images[:2], ["stuck"] * 2, [{}] * 2)
    assert reward.hung == 3  # a call about one prompt is not made again


def test_a_training_goes_on_without_what_hangs(
    tiny_sd3_folder: Path, tmp_path: Path, release: threading.Event
) -> None:
    module = tiny_module(
        tiny_sd3_folder,
        reward=WeightedSum([Hanging("circle", release), JpegCompressibility()]),
        evaluation_rewards=[Hanging("triangle", release)],
        overlap_chunks=2,
        reward_time_limit=LIMIT,
    )
    watched = Hanging("square", release)
    trainer = tiny_trainer(tmp_path, [Canary([watched])], max_epochs=1, limit_train_batches=1)
    with pytest.warns(UserWarning, match="took longer than"):
        trainer.fit(module, tiny_data(tmp_path, val_images=6))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    prompts = module.last.batch.repeat(module.last.tree.row).prompts

    def count(word: str) -> int:
        return sum(word in prompt for prompt in prompts)

    assert metrics["reward/missing"] == count("circle") < len(prompts)
    assert metrics["canary/missing"] == count("square") < len(prompts)
    assert count("circle") + count("square") > 0
    assert metrics["val/missing"] == 2 + 2  # of six images: two circles, two triangles
    assert metrics["val/weighted_sum"] == metrics["val/weighted_sum"]
    with pytest.raises(ValueError, match="reward_time_limit=0 must be above 0"):
        tiny_module(tiny_sd3_folder, reward_time_limit=0)


def hang(output: Path) -> None:
    """The program, whose run leaves a call behind that never returns."""
    begin(dict(os.environ), output)
    lightning_cli.main = run_that_hangs
    sys.argv = ["aegpo", "fit", "--config", "shapes"]
    entry.main()


def run_that_hangs() -> None:
    pool = concurrent.futures.ThreadPoolExecutor()  # Python waits for its threads
    try:
        within(0.2, lambda: pool.submit(time.sleep, 3600).result())
    except TookTooLong:
        print("went on", flush=True)
    raise SystemExit(2)


def test_the_process_ends_although_a_call_hangs_for_ever(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    process = forkserver().Process(target=hang, args=(output,))
    process.start()
    process.join(300)
    assert process.exitcode == 2, output.read_text()
    said = output.read_text()
    assert "went on" in said
    assert "1 calls of a reward never returned and are left behind" in said


JUDGE = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as those of real servers do

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "judge", "object": "model"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({"choices": [{"index": 0, "message": {"content": "Final Score: 4"}}]})

    def reply(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Judge)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Outage(L.Callback):
    """A judge's server that is killed before some iterations and started before others.

    Args:
        down: The iterations before which it is killed.
        up: Those before which it is started again.
    """

    def __init__(self, down: list[int], up: list[int]) -> None:
        self.down, self.up = down, up
        self.missing: list[float] = []
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", JUDGE, str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        self.port = int(self.server.stdout.readline())

    def end(self) -> None:
        self.server.kill()
        self.server.wait()
        assert self.server.stdout is not None
        self.server.stdout.close()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.iteration in self.down:
            self.end()
        if pl_module.iteration in self.up:
            self.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.missing.append(float(trainer.callback_metrics["reward/missing"]))


def judged(
    folder: Path, tmp_path: Path, outage: Outage, max_epochs: int
) -> tuple[VLMJudge, dict[str, Any]]:
    """A training by the judge, two iterations an epoch and an evaluation after the last one."""
    judge = VLMJudge(f"http://127.0.0.1:{outage.port}/v1", "judge", retries=1, timeout=60)
    module = tiny_module(folder, reward=WeightedSum([judge, Redness()]))
    trainer = tiny_trainer(
        tmp_path, [outage], max_epochs=max_epochs, check_val_every_n_epoch=max_epochs
    )
    try:
        trainer.fit(module, tiny_data(tmp_path))
    finally:
        outage.end()
    return judge, dict(trainer.callback_metrics)


def test_a_judge_that_dies_and_comes_back_costs_the_images_between(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    outage = Outage(down=[1], up=[3])
    with pytest.warns(UserWarning, match="12 of 12 images were not scored: 12 x APIConnection"):
        judge, metrics = judged(tiny_sd3_folder, tmp_path, outage, 2)
    assert outage.missing == [0, 12, 12, 0]  # two bad iterations in a row are survived
    assert judge.failures.total() == 24
    assert metrics["val/missing"] == 0 and metrics["val/weighted_sum"] > 0.5
    assert metrics["reward/part/vlm_judge"] == 0.75


def test_a_judge_that_stays_away_stops_the_run(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    outage = Outage(down=[1], up=[])
    with (
        pytest.warns(UserWarning, match="12 of 12 images were not scored"),
        pytest.raises(RuntimeError, match=r"failed on 12 of 12 .* iteration 3, .* 3rd time in a"),
    ):
        judged(tiny_sd3_folder, tmp_path, outage, 2)
    assert outage.missing == [0, 12, 12]
