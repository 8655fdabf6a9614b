"""The command in processes of its own: served, ended, killed, and in a training on two ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from alongside import Alongside
from local_http import fetched
from served_rewards import CPU, ServedProcess
from tiny_training import Redness, tiny_data, tiny_module

from aegpo.rewards import RemoteReward, ShapesMatch
from aegpo.rewards.checks.samples import shapes_samples
from aegpo.rewards.service import asking as client
from aegpo.rewards.service import endpoints
from lightning_modules.commands.serve_reward import main

SAMPLES = shapes_samples(16)
IMAGES = (SAMPLES.images * 255).round() / 255

MINE = '''
import time

from tiny_training import Redness


class Slow(Redness):
    """Redness, after a while.

    Args:
        seconds: How long a call takes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, images, prompts, metadata):
        time.sleep(self.seconds)
        return super().__call__(images, prompts, metadata)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reward of one's own; here nobody waits long for what is away."""
    for module in (client, endpoints):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(client, "TOLD_AFTER", 60.0)
    (tmp_path / "my_rewards.py").write_text(MINE)
    return tmp_path


def wait_for(url: str, key: str, value: int) -> None:
    """Until a service's health says something."""
    limit = time.monotonic() + 60
    while json.loads(fetched(f"{url}/health")[1])[key] < value:
        assert time.monotonic() < limit
        time.sleep(0.01)


def asking(reward: RemoteReward, count: int = len(IMAGES)) -> Alongside[torch.Tensor]:
    """Ask while the test goes on."""
    about = SAMPLES.prompts[:count], SAMPLES.metadata[:count]
    return Alongside(lambda: reward(IMAGES[:count], *about))


def asked(reward: RemoteReward, count: int = len(IMAGES)) -> torch.Tensor:
    """Ask, and wait for the scores."""
    return asking(reward, count).result()


def test_a_process_that_does_not_serve_in_time_is_killed(mine: Path) -> None:
    with pytest.raises(AssertionError, match="does not serve after 0 s"):
        ServedProcess(mine, "my_rewards.Slow", seconds=0)
    with pytest.raises(AssertionError, match="it has ended: error: "):
        ServedProcess(mine, "my_rewards.Nothing")
    assert not [one for one in multiprocessing.active_children() if one.name == "serve-reward"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_has_taken(mine: Path, number: signal.Signals) -> None:
    with ServedProcess(mine, "my_rewards.Slow", "seconds=0.5") as process:
        reward = RemoteReward(process.url, batch=4, concurrency=2, retries=0)
        reward.setup(CPU)
        scores = asking(reward, 8)
        wait_for(process.url, "held", 2)
        assert process.end(number) == 0
        assert torch.equal(scores.result(), Redness()(IMAGES[:8], [], []))
        first, last = process.said().splitlines()
        assert first.startswith("serving slow, configuration ") and "127.0.0.1" in first
        assert last == "scored 8 images in 2 requests, 0 missing; put off 0 requests"


def test_a_reward_that_hangs_does_not_hold_up_the_end(mine: Path) -> None:
    arguments = ("my_rewards.Slow", "seconds=600", "--grace", "0.2")
    with ServedProcess(mine, *arguments) as process:
        reward = RemoteReward(process.url, retries=0)
        with pytest.warns(UserWarning, match="8 of 8 images not scored"):
            scores = asking(reward, 8)
            wait_for(process.url, "held", 1)
            assert process.end() == 1
            assert bool(scores.result().isnan().all())
        assert "left a request without an answer" in process.said()
    with (
        ServedProcess(mine, "my_rewards.Slow", "seconds=600", "--time_limit", "0.02") as process,
        pytest.warns(UserWarning, match="took longer than 0.08 s; 8 of 8 images counted missing"),
    ):
        assert bool(asked(RemoteReward(process.url), 8).isnan().all())


def test_one_of_two_that_is_killed_and_started_again_costs_nothing(mine: Path) -> None:
    command = ("my_rewards.Slow", "seconds=0.05")
    with ServedProcess(mine, *command) as one, ServedProcess(mine, *command) as other:
        reward = RemoteReward([one.url, other.url], batch=2, concurrency=2)
        reward.setup(CPU)
        scores = asking(reward)
        wait_for(one.url, "images", 4)
        assert one.end(signal.SIGKILL) == -signal.SIGKILL
        expected = Redness()(IMAGES, [], [])
        assert torch.equal(scores.result(), expected)
        with ServedProcess(mine, *command, port=one.port) as again:
            other.end(signal.SIGKILL)
            assert torch.equal(asked(reward), expected)
            wait_for(again.url, "images", len(IMAGES))
        # One that comes back with another configuration is not believed.
        with (
            ServedProcess(mine, "my_rewards.Slow", "seconds=0.01", port=one.port),
            pytest.warns(UserWarning, match=r"answers 409: this service's reward has the config"),
        ):
            assert bool(asked(reward, 4).isnan().all())


def test_what_is_served_is_the_bundled_reward_with_its_arguments(tmp_path: Path) -> None:
    with ServedProcess(tmp_path, "aegpo.rewards.ShapesMatch", "--queue", "2") as process:
        reward = RemoteReward(process.url, name="match")
        reward.setup(CPU)
        assert reward.range == ShapesMatch.range and reward.digest in process.said()
        local, chunks = ShapesMatch(), [slice(at, at + 16) for at in range(0, len(IMAGES), 16)]
        expected = [local(IMAGES[a], SAMPLES.prompts[a], SAMPLES.metadata[a]) for a in chunks]
        assert torch.equal(asked(reward), torch.cat(expected))  # batches of the same size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a reward"),
        (["aegpo.rewards.ShapesMatch", "--host", "0.0.0.0"], "--host 0.0.0.0 lets others in"),
        (["aegpo.rewards.ShapesMatch", "--host", "::"], "--host :: lets others in"),
        (["aegpo.rewards.ShapesMatch", "--api_key_env", "UNSET"], "no environment variable"),
        (["aegpo.rewards.ShapesMatch", "--queue", "-1"], "--queue 0"),
        (["aegpo.rewards.ShapesMatch", "--max_images", "0"], "at least 1"),
        (["aegpo.rewards.ShapesMatch", "--time_limit", "0"], "--time_limit above 0"),
        (["aegpo.rewards.ShapesMatch", "--port", "99999"], "cannot listen at host='127.0.0.1'"),
        (["aegpo.rewards.JpegCompressibility", "quality=0", "--port", "0"], "quality=0 must lie"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["aegpo.rewards.ShapesMatch", "--port", str(port)])
    assert f"port={port} (Address already in use)" in capsys.readouterr().err


class Numbers(L.Callback):
    """The rewards of each iteration, and at one of them the end of a service, on rank 0."""

    def __init__(self, killed: int | None) -> None:
        self.killed = killed
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.killed is not None and pl_module.iteration == 1 and trainer.is_global_zero:
            os.kill(self.killed, signal.SIGKILL)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        names = ("reward/mean", "reward/std", "reward/missing")
        self.rows.append({name: float(trainer.callback_metrics[name]) for name in names})


def train(
    tmp_path: Path, folder: Path, devices: int, urls: list[str], killed: int | None = None
) -> list[dict[str, float]]:
    """A short training by a served reward, as one of some ranks; its numbers."""
    own = tmp_path / f"rank{os.environ.get('RANK', '')}"  # ranks do not write while others read
    own.mkdir(exist_ok=True)
    numbers = Numbers(killed)
    trainer = L.Trainer(
        **{"accelerator": "cpu", "devices": devices, "max_epochs": 2, "logger": False},
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[numbers],
        **{"enable_checkpointing": False, "enable_progress_bar": False},
        **{"enable_model_summary": False, "num_sanity_val_steps": 0},
        default_root_dir=tmp_path,
    )
    reward = RemoteReward(urls, name="redness", batch=2)
    trainer.fit(tiny_module(folder, lr=1e-2, reward=reward), tiny_data(own))
    return numbers.rows


def test_two_ranks_learn_what_one_does_while_a_service_dies(
    pair: Any, tiny_sd3_folder: Path, mine: Path
) -> None:
    with (
        ServedProcess(mine, "my_rewards.Slow") as one,
        ServedProcess(mine, "my_rewards.Slow") as two,
    ):
        urls = [one.url, two.url]
        alone = train(mine, tiny_sd3_folder, 1, urls)
        both = pair.run(train, mine, tiny_sd3_folder, 2, urls, one.process.pid)
        one.process.join(30)
        assert one.process.exitcode == -signal.SIGKILL
    assert len(alone) == 4 and both[0] == both[1]
    for row, other in zip(alone, both[0], strict=True):
        assert row["reward/missing"] == other["reward/missing"] == 0
        assert other == pytest.approx(row, rel=1e-3, abs=1e-6)
