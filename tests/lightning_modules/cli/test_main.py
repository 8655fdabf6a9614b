"""What the program answers before it imports Lightning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.cli import main as entry

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], "aegpo "),
        (["--help"], "usage: "),
        ([], "usage: "),
        (["doctor", "--help"], "usage: "),
    ],
)
def test_light_answers_load_no_torch(arguments: list[str], expected: str) -> None:
    code = "import sys; from lightning_modules.cli.main import main; main(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected)
    assert done.stdout.endswith("False\n")


def test_python_m_aegpo_refuses_an_unknown_command_with_a_suggestion() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aegpo", "validat"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "did you mean 'validate'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_debug_flag_reaches_the_cli_through_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["aegpo", "fit", "--debug", "--config", "x.yaml"])
    monkeypatch.setenv("AEGPO_DEBUG", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # what is set stands, and nothing is added
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # another test's main has set it
    arrived = []
    monkeypatch.setattr(entry, "_run", lambda: arrived.append(list(sys.argv)))
    entry.main()
    assert arrived == [["aegpo", "fit", "--config", "x.yaml"]]
    assert os.environ["AEGPO_DEBUG"] == "1" and "GOMP_SPINCOUNT" not in os.environ


def test_a_torchvision_that_does_not_match_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "lightning_modules.cli.lightning_cli":
                raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.delenv("AEGPO_DEBUG", raising=False)
    monkeypatch.delitem(sys.modules, "lightning_modules.cli.lightning_cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        entry._run()
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert "torch and torchvision do not match" in line and len(line.splitlines()) == 1
