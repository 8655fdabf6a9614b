"""The programs of `examples/` run as they stand, without Lightning, and say what they promise."""

from __future__ import annotations

import re
import runpy
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from free_port import free_port

from aegpo.rewards import RemoteReward
from aegpo.rewards.checks.samples import shapes_samples

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONGEST = 60
"""Lines of a program that is read at one sitting."""

FRAMEWORK = (
    *("lightning", "pytorch_lightning", "lightning_fabric"),
    *("lightning_modules", "callbacks", "datamodules"),
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a program as `python examples/<name>.py <arguments>`; returns what it printed."""
    for name in FRAMEWORK:  # to import any of them is an error
        monkeypatch.setitem(sys.modules, name, None)

    def start(name: str, *arguments: str) -> str:
        (program,) = (path for path in EXAMPLES if path.stem == name)
        monkeypatch.setattr(sys, "argv", [str(program), *arguments])
        runpy.run_path(str(program), run_name="__main__")
        return capsys.readouterr().out

    return start


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+(?:e[-+]\d+)?", text)]


def test_there_are_five() -> None:
    names = [path.stem for path in EXAMPLES]
    assert names == ["entropy_curve", "grpo_step", "own_reward", "own_selector", "reward_service"]


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_a_program_fits_on_a_page(program: Path) -> None:
    assert len(program.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_one_step_makes_the_better_images_likelier(run) -> None:
    *prompts, transitions, ratios = run("grpo_step").splitlines()
    assert len(prompts) == 3
    for line in prompts:
        mean, spread = numbers(line)
        assert "12 images" in line
        assert 0 < mean < 1 and spread > 0
    assert transitions.startswith("108 transitions")  # 3 prompts, 12 images, 3 of 8 steps
    better, worse = numbers(ratios)
    assert better > 1e-5 and worse < -1e-5


def test_the_entropy_curve_is_that_of_the_recorder(run) -> None:
    header, *steps = run("entropy_curve").splitlines()
    assert header.startswith("StableDiffusion3Pipeline: ")
    assert header.split()[-1].startswith("transformer_blocks.")
    assert len(steps) == 10
    means = [numbers(line)[0] for line in steps]
    assert all(0 < value < 1 for line in steps for value in numbers(line))
    peaks = [step for step, line in enumerate(steps) if "peak" in line]
    assert len(peaks) == 4 and 9 not in peaks
    rest = set(range(9)) - set(peaks)
    assert min(means[step] for step in peaks) >= max(means[step] for step in rest)
    assert [line.count("#") for line in steps][means.index(max(means))] == 40


def test_the_entropy_curve_is_of_the_pipeline_and_prompts_asked_for(
    run, tiny_sd15_folder: Path
) -> None:
    once = run("entropy_curve", str(tiny_sd15_folder), "a cat")
    again = run("entropy_curve", str(tiny_sd15_folder), "two dogs on a sofa")
    assert once.startswith("StableDiffusionPipeline: ")
    assert len(once.splitlines()) == 11
    assert once != again


def test_a_pipeline_that_nothing_drives_is_refused_in_a_line(run, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(SystemExit, match=r"is a KandinskyPipeline, which no policy drives"):
        run("entropy_curve", str(tmp_path))


def test_the_reward_of_ones_own_passes_every_check(run) -> None:
    printed = run("own_reward").splitlines()
    scenes = [line for line in printed if "where one thing is wrong" in line]
    findings = printed[len(scenes) :]
    assert len(scenes) == 4
    for line in scenes:
        right, *wrong = numbers(line)
        assert right > 0.8 and min(wrong) < 0.6  # another color is seen, another shape is not
    assert len(findings) > 10
    assert all(line.startswith("ok ") for line in findings)


def test_the_selector_of_ones_own_takes_the_steepest_steps(run) -> None:
    lines = run("own_selector").splitlines()
    assert len(lines) == 8
    rounding = 0.011  # of differences of printed values
    for first in (0, 4):
        name, *curve = lines[first].split()
        assert name in ("falling", "waving")
        values = [float(value) for value in curve]
        rows = {line.split()[0]: line.split()[1:] for line in lines[first + 1 : first + 4]}
        assert list(rows) == ["SteepestSteps", "EntropyPeaks", "RandomSteps"]
        chosen = {
            name: {t for t, mark in enumerate(marks) if mark == "*"} for name, marks in rows.items()
        }
        assert all(len(steps) == 3 and max(steps) < 9 for steps in chosen.values())
        change = [abs(after - before) for before, after in pairwise(values)]
        least = min(change[step] for step in chosen["SteepestSteps"])
        assert least > -rounding + max(
            change[t] for t in range(9) if t not in chosen["SteepestSteps"]
        )
        peak = min(values[step] for step in chosen["EntropyPeaks"])
        assert peak > -rounding + max(
            values[t] for t in range(9) if t not in chosen["EntropyPeaks"]
        )


def test_a_service_in_plain_python_is_asked_as_any_other() -> None:
    (program,) = (path for path in EXAMPLES if path.stem == "reward_service")
    code = "import sys; sys.modules.update(torch=None, aegpo=None); import runpy; "
    code += f"runpy.run_path({str(program)!r}, run_name='__main__')"
    port = free_port()
    service = subprocess.Popen([sys.executable, "-c", code, str(port)], stderr=subprocess.DEVNULL)
    try:
        samples = shapes_samples(2)
        reward = RemoteReward(f"http://127.0.0.1:{port}", batch=3, timeout=20, retries=2)
        limit = time.monotonic() + 60
        connected = 1
        while connected != 0:
            assert service.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
            with socket.socket() as trial:
                trial.settimeout(5)
                connected = trial.connect_ex(("127.0.0.1", port))
        reward.setup(torch.device("cpu"))
        scores = reward(samples.images, samples.prompts, samples.metadata)
    finally:
        service.kill()
        service.wait(30)
    rounded = (samples.images * 255).round() / 255
    expected = (rounded[:, 0] - rounded[:, 1]).mean((1, 2))
    torch.testing.assert_close(scores, expected)
    assert reward.range == (-1, 1) and reward.digest == "redness of 2026-11-30"
