"""What the entropy probe adds to an iteration of the quickstart, by where it reads.

    python benchmarks/probe_costs.py [--rounds 6]

One training on Shapes in which the iterations take turns: without a probe, and with each of those
of `PROBES`. The table has the CPU seconds of the fastest iteration of each and their ratio to those
without, with the base's own trajectories (a prompt's first visit) and without them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from aegpo.entropy import EntropyRecorder
from callbacks import EntropyProbe

ROOT = Path(__file__).parents[1]
LAST = ["transformer_blocks.3.attn"]
PROBES: dict[str, dict[str, Any] | None] = {
    "off": None,
    "rollouts, last block, 64 rows": {"source": "rollouts", "layers": LAST, "rows": 64},
    "rollouts, last block": {"source": "rollouts", "layers": LAST, "rows": None},
    "trajectory, last block, 64 rows": {"source": "trajectory", "layers": LAST, "rows": 64},
    "trajectory, last block": {"source": "trajectory", "layers": LAST, "rows": None},
    "trajectory, all blocks": {"source": "trajectory", "layers": "all", "rows": None},
    "rollouts, all blocks": {"source": "rollouts", "layers": "all", "rows": None},
}
"""Without `rows` every query is read: exact."""


class TakingTurns(L.Callback):
    """One probe after the other, and none; prints the CPU seconds of every iteration.

    Nothing is published, so that all iterations draw and train alike.
    """

    def __init__(self) -> None:
        self.probes = {name: self._probe(settings) for name, settings in PROBES.items()}
        self.begun = self.reference = 0.0
        self.name = ""

    @staticmethod
    def _probe(settings: dict[str, Any] | None) -> EntropyProbe | None:
        if settings is None:
            return None
        recorder = EntropyRecorder(settings["layers"], "all_to_all", settings["rows"])
        probe = EntropyProbe(recorder, source=settings["source"])
        draw = probe._references

        def timed(*arguments: Any) -> Any:
            begun = time.process_time()
            drawn = draw(*arguments)
            probe.spent = time.process_time() - begun  # type: ignore[attr-defined]
            return drawn

        probe._references = timed  # type: ignore[method-assign]
        return probe

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, number: int) -> None:
        """Begin the iteration of the next probe."""
        self.name = list(self.probes)[number % len(self.probes)]
        self.begun = time.process_time()
        probe = self.probes[self.name]
        pl_module.recorder = None
        if probe is not None:
            probe.spent = 0.0  # type: ignore[attr-defined]
            probe.on_train_batch_start(trainer, pl_module, batch, number)
        pl_module.entropy = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        """Print what it took, and what of it went into the base's trajectories."""
        probe = self.probes[self.name]
        if probe is not None:
            probe.on_train_batch_end(trainer, pl_module, outputs, batch, number)
        taken = time.process_time() - self.begun
        print(json.dumps(["probe_costs", self.name, taken, getattr(probe, "spent", 0)]), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds + 1  # the first warms up
    settings = {
        "trainer.callbacks": f"[{{class_path: probe_costs.{TakingTurns.__name__}}}]",
        "trainer.max_epochs": 1,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "data.batches_per_epoch": rounds * len(PROBES),
    }
    command = [sys.executable, "-m", "aegpo", "fit", "--config", str(ROOT / "configs/shapes.yaml")]
    command += [f"--{name}={value}" for name, value in settings.items()]
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if "probe_costs" in line]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PROBES}
    for _, name, seconds, reference in lines[len(PROBES) :]:
        taken[name].append((seconds, seconds - reference))
    alone = min(seconds for seconds, _ in taken["off"])
    print("| probe | CPU seconds | of an iteration | without the base's trajectories |")
    print("| --- | --- | --- | --- |")
    for name, pairs in taken.items():
        whole, own = (min(part) for part in zip(*pairs, strict=True))
        print(f"| {name} | {whole:.2f} | {whole / alone:.3f} | {own / alone:.3f} |")


if __name__ == "__main__":
    main()
