"""What a command takes before its first useful line, beside the bare import of Lightning.

    python benchmarks/start_up.py [--rounds 3] [--quick]

Every round runs each case once, in turn, so that all of them meet the same machine; the table has
the fastest of each and its ratio to `python -c "import lightning.pytorch.cli"` (of an import of
torch, Lightning and what they bring along, which no command that trains can do without).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L

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
    "fit --print_config": [*FIT, "--print_config"],
    "plan": [*AEGPO, "plan", "--config", SHAPES],
}
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
        print(f"start_up {time.time() - float(os.environ[_BEGUN]):.2f} {stage}", flush=True)


RUN = [
    *FIT,
    f"--trainer.callbacks+=start_up.{FirstStep.__name__}",
    "--trainer.logger=false",
    "--trainer.default_root_dir=.",
]


def seconds(command: list[str], folder: Path) -> tuple[float, dict[str, float]]:
    """Run a command; its seconds, and those to each stage that it names."""
    begun = time.time()
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), _BEGUN: repr(begun)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    taken = time.time() - begun
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return taken, {line[2]: float(line[1]) for line in lines if line[:1] == ["start_up"]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, and no training")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    quick, rounds = asked.quick, 1 if asked.quick else asked.rounds
    best = dict.fromkeys(CASES, float("inf"))
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in FILES.items():
            (folder / file).write_text(text)
        for _ in range(rounds):
            for case, command in CASES.items():
                best[case] = min(best[case], seconds(command, folder)[0])
            for stage, taken in {} if quick else seconds(RUN, folder)[1].items():
                stages[stage] = min(stages.get(stage, taken), taken)
    print(f"torch {version('torch')}, lightning {version('lightning')}, {os.cpu_count()} cores\n")
    print("| to | seconds | of the bare import |\n| --- | --- | --- |")
    quickstart = {f"the quickstart: {stage}": taken for stage, taken in stages.items()}
    for case, taken in {**best, **quickstart}.items():
        print(f"| {case} | {taken:.1f} | {taken / best['the bare import']:.2f} |")


if __name__ == "__main__":
    main()
