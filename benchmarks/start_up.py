"""What a command takes before its first useful line, beside the bare import of Lightning.

    python benchmarks start-up [--rounds 3] [--quick]

Every round runs each case once, in turn, so that all of them meet the same machine; the table has
the fastest of each and its ratio to `python -c "import lightning.pytorch.cli"` (of an import of
torch, Lightning and what they bring along, which no command that trains can do without). CPU
seconds, user's and system's, say the same where other processes want the cores, too.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L

from aegpo.utilities.tables import markdown_table

ROOT = Path(__file__).parents[1]
SHAPES = str(ROOT / "configs/shapes.yaml")
BARE = "import lightning.pytorch.cli"
AEGPO = [sys.executable, "-m", "aegpo"]
FIT = [*AEGPO, "fit", "--config", SHAPES]
MISTAKES = {
    "a config that is not there": ["--config", "nope.yaml"],
    "a mistyped class": ["--config", "class.yaml"],
    "a mistyped argument": ["--config", "argument.yaml"],
    "a module that is not there": ["--config", "module.yaml"],
}
FILES = {
    "class.yaml": "model: {init_args: {reward: {class_path: aegpo.rewards.ShapesMach}}}",
    "argument.yaml": "model: {init_args: {policy: {init_args: {lora_rnk: 4}}}}",
    "module.yaml": "model: {init_args: {reward: {class_path: my_rewards.Mine}}}",
}
CASES = {
    "the bare import": [sys.executable, "-c", BARE],
    "--help": [*AEGPO, "--help"],
    **{name: [*FIT, *arguments] for name, arguments in MISTAKES.items()},
    "fit --help": [*AEGPO, "fit", "--help"],
    "fit --help all": [*AEGPO, "fit", "--help", "all"],
    "fit --print_config": [*FIT, "--print_config"],
    "plan": [*AEGPO, "plan", "--config", SHAPES],
}
EARLY = ("the bare import", "--help", "fit --help", *MISTAKES)
"""What `--quick` runs."""
_BEGUN = "START_UP_BEGUN"


class FirstStep(L.Callback):
    """Prints the seconds from the command to each stage of a run, and ends at its first step."""

    def __init__(self) -> None:
        self._say("the trainer is built")

    def on_sanity_check_start(self, *_: Any) -> None:
        """The policy is there; the base is scored now."""
        self._say("the policy is loaded")

    def on_train_start(self, *_: Any) -> None:
        """The base has been scored, and the first rollout begins."""
        self._say("the base is scored")

    def on_before_optimizer_step(self, *_: Any) -> None:
        """The first optimizer step is about to be taken."""
        self._say("the first optimizer step")
        os._exit(0)

    @staticmethod
    def _say(stage: str) -> None:
        wall = time.time() - float(os.environ[_BEGUN])
        print(f"start_up {wall:.2f} {time.process_time():.2f} {stage}", flush=True)


RUN = [
    *FIT,
    f"--trainer.callbacks+=start_up.{FirstStep.__name__}",
    "--trainer.logger=false",
    "--trainer.default_root_dir=.",
]


class Spent(NamedTuple):
    """What something took.

    Args:
        seconds: On the wall.
        cpu: Of the CPU.
    """

    seconds: float
    cpu: float

    def least(self, other: Spent) -> Spent:
        """The smaller of both, each."""
        return Spent(min(self.seconds, other.seconds), min(self.cpu, other.cpu))


def spent(command: list[str], folder: Path) -> tuple[Spent, dict[str, Spent]]:
    """Run a command; what it took, and what each stage took that it names."""
    begun, before = time.time(), _children()
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), _BEGUN: repr(begun)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    taken = Spent(time.time() - begun, _children() - before)
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    told = [line for line in lines if line[:1] == ["start_up"]]
    return taken, {stage: Spent(float(wall), float(cpu)) for _, wall, cpu, stage in told}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks start-up", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round of what answers early")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    quick, rounds = asked.quick, 1 if asked.quick else asked.rounds
    cases = {case: CASES[case] for case in (EARLY if quick else CASES)}
    never = Spent(float("inf"), float("inf"))
    best = dict.fromkeys(cases, never)
    stages: dict[str, Spent] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in FILES.items():
            (folder / file).write_text(text)
        for _ in range(rounds):
            for case, command in cases.items():
                best[case] = best[case].least(spent(command, folder)[0])
            for stage, taken in {} if quick else spent(RUN, folder)[1].items():
                stages[stage] = stages.get(stage, never).least(taken)
    print(f"torch {version('torch')}, lightning {version('lightning')}, {os.cpu_count()} cores\n")
    quickstart = {f"the quickstart: {stage}": taken for stage, taken in stages.items()}
    bare = best["the bare import"]
    rows = [
        [
            *(case, f"{taken.seconds:.1f}", f"{taken.seconds / bare.seconds:.2f}"),
            *(f"{taken.cpu:.1f}", f"{taken.cpu / bare.cpu:.2f}"),
        ]
        for case, taken in {**best, **quickstart}.items()
    ]
    header = ("to", "seconds", "of the bare import", "CPU seconds", "of the bare import's")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
