"""The command: what it accepts, prints and returns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_modules.cli import main as entry
from lightning_modules.commands.check_reward import main

MINE = '''
import warnings

import torch

from aegpo.rewards import Reward


class Mean(Reward):
    """The mean of an image.

    Args:
        gain: Factor.
        centered: Whether the mean of the batch is taken off.
    """

    def __init__(self, gain: float = 1.0, centered: bool = False) -> None:
        if gain == 0:
            raise ValueError("gain=0 leaves nothing")
        self.gain, self.centered = gain, centered

    def __call__(self, images, prompts, metadata):
        warnings.warn(f"{len(images)} images")
        scores = images.mean((1, 2, 3)) * self.gain
        return scores - scores.mean() if self.centered else scores
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is the current one, with rewards of their own."""
    (tmp_path / "my_rewards.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    monkeypatch.delenv("AEGPO_DEBUG", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[str]]:
    """Status and lines of output; a mistake's line is the only one."""
    try:
        main(list(args))
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    out, err = capsys.readouterr()
    return status, (err if status == 2 else out).strip().splitlines()


def test_a_good_reward_is_one_line_a_check_and_status_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["aegpo", "check-reward", "aegpo.rewards.ShapesJudge", "--prompts", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    entry.main()
    lines = capsys.readouterr().out.strip().splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == f"{len(lines) - 1} ok, 0 warning, 0 failed"
    assert any("(8,) float32" in line for line in lines)


def test_a_bad_reward_of_the_current_folder_is_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, lines = run(capsys, "my_rewards.Mean", "centered=true", "--prompts", "2")
    assert status == 1
    assert any(line.startswith("failed   batch") for line in lines)
    warned = [line for line in lines if "warned" in line]
    assert warned[0].startswith("python warned: 4 images") and len(warned) <= 4


def test_arguments_and_images_arrive_in_every_spelling(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    images = folder / "images"
    images.mkdir()
    records = []
    for number in range(3):
        Image.new("RGB", (8, 8), (51 * number,) * 3).save(images / f"{number}.png")
        records.append({"file_name": f"{number}.png", "prompt": f"number {number}"})
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "reward.yaml").write_text(
        "reward: {class_path: my_rewards.Mean, init_args: {gain: 10}}\nimages: images\n"
    )
    for arguments in (
        ["my_rewards.Mean", "gain=10", "--images", "images"],
        ["my_rewards.Mean", "--init_args.gain", "10", "--images=images"],
        ["my_rewards.Mean", "--init_args.gain=10", "--images", "images"],
        ["--reward", "my_rewards.Mean", "--reward.gain", "10", "--images", "images"],
        ["--config", "reward.yaml"],
    ):
        status, lines = run(capsys, *arguments)
        assert status == 0
        (line,) = (line for line in lines if " range " in line)
        assert "0 to 4; no range" in line, arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a reward"),
        (["aegpo.rewards.ShapesJugde"], "did you mean 'ShapesJudge'?"),
        (["my_rewards.Mean", "gian=1"], "did you mean 'gain'?"),
        (["my_rewards.Mean", "gain=0"], "error: gain=0 leaves nothing"),
        (["my_rewards.Mean", "--prompts", "0"], "at least 1"),
        (["my_rewards.Mean", "--device", "mars"], "device='mars' is no device"),
        (["my_rewards.Mean", "--images", "nowhere"], "there is no nowhere/metadata.jsonl"),
        (["aegpo.allocation.UniformAllocator"], "Reward"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, lines = run(capsys, *arguments)
    assert status == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and message in lines[0]
