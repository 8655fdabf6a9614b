"""What the program answers before it imports Lightning."""

from __future__ import annotations

import json
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
        (["fit", "--config", "nope.yaml", "--help"], "usage: "),
        (["evaluate", "-h"], "usage: "),
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


MISTAKES = [
    ["fit", "--config", "nope.yaml"],
    ["validate", "--config", "configs/shapes.yaml", "--model.reward=aegpo.rewards.Nothing"],
    ["fit", "--config", "configs/shapes.yaml", "--config", "class.yaml"],
    ["fit", "--config", "configs/shapes.yaml", "--config", "key.yaml"],
    ["plan", "--config", "configs/shapes.yaml", "--config", "module.yaml"],
    ["evaluate", "--config", "configs/shapes.yaml", "--limit", "2"],
    ["validate", "--ckpt_path", "last"],
]
UNUSED = (
    "diffusers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "open_clip",
    "pandas",
    "aegpo.planning.memory",
    "aegpo.export.check",
    "aegpo.study",
    "lightning_modules.commands.plan.plan",
    "lightning_modules.commands.signals",
)
"""What no help and no parsing needs; each takes a noticeable part of a second, or brings one."""
RUN = """
import contextlib, io, json, sys
from lightning_modules.cli.main import main
said, ends = io.StringIO(), []
with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
    for sys.argv[1:] in json.loads(sys.argv[1]):
        try:
            main()
        except SystemExit as end:
            ends.append(end.code)
print(json.dumps([ends, said.getvalue().splitlines(), sorted(sys.modules)]))
"""


def run_one_after_the_other(commands: list[list[str]]) -> tuple[list[int], list[str], set[str]]:
    """Run commands in one process; their statuses, what they said, and what was imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AEGPO_DEBUG": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    ends, said, modules = json.loads(done.stdout)
    return ends, said, set(modules)


def test_what_shows_of_a_mistake_is_told_before_anything_heavy_is_imported(
    tmp_path: Path,
) -> None:
    (tmp_path / "class.yaml").write_text("trainer: {callbacks+: [{class_path: callbacks.Prob}]}")
    (tmp_path / "key.yaml").write_text("model: {init_args: {clip_rang: 1.0}}")
    (tmp_path / "module.yaml").write_text("model: {init_args: {sde: {class_path: nothing.SDE}}}")
    names = ("class.yaml", "key.yaml", "module.yaml")
    commands = [
        [str(tmp_path / word) if word in names else word for word in one] for one in MISTAKES
    ]
    ends, said, modules = run_one_after_the_other(commands)
    assert ends == [2] * len(MISTAKES)
    assert len(said) == len(MISTAKES) and all(line.startswith("error: ") for line in said), said
    assert modules.isdisjoint({"torch", "lightning", "diffusers", "transformers", "scipy", "numpy"})


def test_help_imports_only_what_it_shows() -> None:
    ends, said, modules = run_one_after_the_other([["fit", "--help", "all"]])
    assert ends == [0], said
    assert "lightning.pytorch.cli" in modules
    assert modules.isdisjoint(UNUSED), modules.intersection(UNUSED)


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
