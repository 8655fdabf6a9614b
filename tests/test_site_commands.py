"""Every command of every page is one that the program takes, or stands in a list with a reason.

Trainings are parsed as they would be when typed, by the program's own entry point, up to the moment
when anything is built. README's run in miniature in `test_readme.py`, the quickstart's in
`test_quickstart_page.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from site_pages import ROOT, blocks, commands, commands_in_text, language, reading_in, row_starts

from lightning_modules.cli import lightning_cli
from lightning_modules.cli.main import main
from lightning_modules.commands import COMMANDS, check_reward, serve_reward
from lightning_modules.commands.compare import compare
from lightning_modules.commands.doctor import environment, resume
from lightning_modules.commands.report import report

QUICKSTART, README = ROOT / "docs/quickstart.md", ROOT / "README.md"
PAGES = [
    *sorted({*(ROOT / "docs").rglob("*.md")} - {QUICKSTART}),
    *(ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"),
]
NOT_CHECKED = row_starts(ROOT / "docs/checked.md", "command begins with")
SHOWN = {
    shlex.join(words): words
    for words in [
        *(words for page in PAGES for words in commands(page)),
        *commands(README, shells=("sh",)),
        *(words for page in [*PAGES, README, QUICKSTART] for words in commands_in_text(page)),
    ]
}


def parts(words: list[str]) -> list[tuple[str, ...]]:
    """Program, command and each option with its values; a shipped config under one of its names."""
    found: list[tuple[str, ...]] = []
    for word in words:
        if not found or (word.startswith("--") and found[0][0] == "aegpo"):
            found.append((word,))
        else:
            name = re.sub(r"^configs/(.*)[.]yaml$", r"\1", word)
            found[-1] = (*found[-1], name)
    return found


def within(words: list[str], others: list[str]) -> bool:
    """Whether another command has all of this one and more, so that it need not be tried too."""
    mine, theirs = parts(words), parts(others)
    return mine[0] == theirs[0] and len(mine) < len(theirs) and set(mine) <= set(theirs)


TYPED = {
    command: words
    for command, words in SHOWN.items()
    if not any(within(words, others) for others in SHOWN.values())
}
pytestmark = pytest.mark.timeout(90)  # a command that went on to its work may never end
LAUNCHERS = ("torchrun", "srun")
OWN_REWARDS = {"my_module": "MyReward", "my_rewards": "MyReward", "my_reward": "Contrast"}
REWARD = """
from aegpo.rewards import Reward


class {}(Reward):
    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def __call__(self, images, prompts, metadata):
        return self.gain * images.mean(dim=(1, 2, 3))
"""
A_CONFIG = ["--config", "configs/shapes.yaml"]


class Parsed(BaseException):
    """Ends the program when everything has been parsed and nothing was built."""


class ParsesOnly(lightning_cli.AEGPOCLI):
    """The command line up to there."""

    def before_instantiate_classes(self) -> None:
        raise Parsed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages take to be there: configs, own files, a run, an export, an evaluation."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / "configs/shapes.yaml", folder / "my.yaml")
    shutil.copy(ROOT / "examples/own_selector.py", folder)
    for module, name in OWN_REWARDS.items():
        (folder / f"{module}.py").write_text(REWARD.format(name))
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "a red circle", "category": "easy"}\n')
    (folder / "reward.yaml").write_text(
        yaml.safe_dump({"reward": {"class_path": "aegpo.rewards.ShapesMatch"}})
    )
    for block in (block for page in PAGES for block in blocks(page)):
        name = re.match(r"# (\S+[.]yaml)\n", block.content)
        if language(block) == "yaml" and name is not None:
            (folder / name[1]).write_text(block.content)
    for place in (
        "runs/shapes",
        "geneval",
        "evaluated",
        "other_noise/images/base",
        "exports/shapes",
    ):
        (folder / place).mkdir(parents=True)
    shutil.copy(ROOT / "configs/shapes.yaml", folder / "runs/shapes/config.yaml")
    shutil.copy(ROOT / "docs/results/decisions_aegpo.jsonl", folder / "runs/shapes/decisions.jsonl")
    for file in ("runs/a.ckpt", "geneval/evaluation_metadata.jsonl", "evaluated/results.json"):
        (folder / file).write_text("{}\n")
    return folder


def filled_in(words: list[str]) -> list[str]:
    """The command with the quickstart's config where the page has `…`."""
    filled: list[str] = []
    for word in words:
        if word != "…":
            filled.append(word)
        elif filled[-1] == "--config":
            filled.append(A_CONFIG[1])
        else:
            filled += A_CONFIG
    return filled


def without_launcher(words: list[str]) -> list[str]:
    """What torchrun or srun starts, without `-m`."""
    return words[next(at for at, word in enumerate(words) if word == "aegpo") :]


def nothing() -> None:
    """Stands where a program would begin its work."""
    raise Parsed


def take(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Have the program parse a command, and a few programs of its own do all but their work."""
    patch.setattr(lightning_cli, "AEGPOCLI", ParsesOnly)
    patch.setattr(environment, "check_environment", lambda folder: ())
    patch.setattr(compare, "compare", lambda settings, *rest: settings.validate() or True)
    patch.setattr(report, "read_run", lambda folder, name: nothing())
    patch.setattr(check_reward, "read_samples", lambda *asked: nothing())
    patch.setattr(serve_reward, "bound_socket", lambda host, port: nothing())
    patch.setenv("REWARD_KEY", "s3cret")
    if "--resume" in words:
        _, rest = resume._parser().parse_known_args(words[2:])
        words = ["aegpo", "fit", *rest]
    patch.setattr(sys, "argv", words)
    try:
        main()
    except Parsed:
        pass
    except SystemExit as ended:
        assert ended.code in (0, None), f"{shlex.join(words)} was refused"


def options_of(script: Path, words: list[str]) -> set[str]:
    """Options that were typed and that the script's source, or its module's, does not name."""
    own = words[: words.index("--")] if "--" in words else words
    typed = {word.split("=")[0] for word in own if word.startswith("--")}
    source = "".join(file.read_text() for file in sorted(script.parent.rglob("*.py")))
    return {option for option in typed if f'"{option}"' not in source} - {"--help"}


def benchmark(name: str) -> None:
    """Check that there is a table of that name."""
    source = (ROOT / "benchmarks/__main__.py").read_text()
    assert re.search(rf'^    "{name}": \(', source, re.MULTILINE) or name in ("all", "--help")


def check(words: list[str], patch: pytest.MonkeyPatch) -> None:
    program, *rest = filled_in(words)
    if program in LAUNCHERS:
        program, *rest = without_launcher([program, *rest])
    if program in ("aegpo", "lightning"):
        assert rest[0] in COMMANDS
        take([program, *rest], patch)
    elif program == "make":
        done = subprocess.run(
            ["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    else:
        assert program == "python"
        script = ROOT / rest[0]
        script = script / "__main__.py" if script.is_dir() else script
        assert script.is_file()
        assert not options_of(script, rest[1:])
        if rest[0] == "benchmarks" and len(rest) > 1:
            benchmark(rest[1])


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) > 80
    shown = {words[1] for words in SHOWN.values() if words[0] == "aegpo"}
    assert shown >= {"fit", "plan", "doctor", "signals", "evaluate", "export", "compare", "report"}


def test_what_is_not_checked_is_there_and_no_program_of_ours() -> None:
    for start in NOT_CHECKED:
        assert not start.startswith(("aegpo", "python", "make"))


@pytest.mark.parametrize("command", TYPED)
def test_a_command_is_taken(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command.startswith(tuple(NOT_CHECKED)):
        pytest.skip("docs/checked.md says why")
    with reading_in(folder):
        check(TYPED[command], monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "aegpo fit --config configs/shapes.yaml --model.lr 1",
        "aegpo fit --config configs/gone.yaml",
        "aegpo evaluate --config configs/shapes.yaml --suit shapes:heldout",
        "aegpo replay runs/shapes/decisions.jsonl --allocator Gone",
        "aegpo report runs/shapes --gone 1",
        "make gone",
        "python benchmarks gone",
        "python examples/gone.py",
    ],
)
def test_a_wrong_command_is_seen(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with reading_in(folder), pytest.raises(AssertionError):
        check(shlex.split(command), monkeypatch)
