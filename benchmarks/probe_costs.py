"""What the entropy probe adds to an iteration of the quickstart, by where it reads.

    python benchmarks probe [--rounds 6] [--quick]

One training on Shapes in which the iterations take turns: without a probe, and with each of those
of `PROBES`. The table has the CPU seconds of the fastest iteration of each and their ratio to those
without. A prompt's first visit draws the base's own trajectory, which is kept: the last column
leaves that out, and is what a probe costs once all prompts have been seen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from machine import heading
from trainings import QUICKSTART, Recipe, build

from aegpo.entropy import EntropyRecorder
from aegpo.utilities.tables import markdown_table
from callbacks import EntropyProbe

LAST = ["transformer_blocks.3.attn"]
PROBES: dict[str, dict[str, Any] | None] = {
    "off": None,
    "rollouts, last block, 8 rows": {"source": "rollouts", "layers": LAST, "rows": 8},
    "rollouts, last block": {"source": "rollouts", "layers": LAST, "rows": None},
    "trajectory, last block, 8 rows": {"source": "trajectory", "layers": LAST, "rows": 8},
    "trajectory, last block": {"source": "trajectory", "layers": LAST, "rows": None},
    "trajectory, all blocks": {"source": "trajectory", "layers": "all", "rows": None},
    "rollouts, all blocks": {"source": "rollouts", "layers": "all", "rows": None},
}
"""Without `rows` every query is read: exact, all 26 tokens of the bundled model."""
FEW = ("off", "rollouts, last block, 8 rows", "trajectory, last block")
"""Those of `--quick`."""


class TakingTurns(L.Callback):
    """One probe after the other, and none; notes the CPU seconds of every iteration.

    Nothing is published, so that all iterations draw and train alike.

    Args:
        names: Those of `PROBES` that take turns.

    Attributes:
        taken: The probe, the seconds, and those in the base's trajectories, of every iteration.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.probes = {name: self._probe(PROBES[name]) for name in names}
        self.begun = self.reference = 0.0
        self.name = ""
        self.taken: list[tuple[str, float, float]] = []

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
        """Note what it took, and what of it went into the base's trajectories."""
        probe = self.probes[self.name]
        if probe is not None:
            probe.on_train_batch_end(trainer, pl_module, outputs, batch, number)
        taken = time.process_time() - self.begun
        self.taken.append((self.name, taken, getattr(probe, "spent", 0.0)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks probe", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="one round of 24 images, three probes")
    options = parser.parse_args(arguments)
    rounds = (1 if options.quick else options.rounds) + 1  # the first warms up
    print(f"{heading()}\n", flush=True)
    names = FEW if options.quick else tuple(PROBES)
    turns = TakingTurns(names)
    recipe = Recipe(QUICKSTART, images=24 if options.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        cli = build(recipe, Path(folder), rounds * len(names))
        trainer: Any = cli.trainer
        trainer.callbacks = [turns]
        trainer.fit(cli.model, datamodule=cli.datamodule)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for name, seconds, reference in turns.taken[len(names) :]:
        taken[name].append((seconds, seconds - reference))
    alone = min(seconds for seconds, _ in taken["off"])
    rows = []
    for name, pairs in taken.items():
        whole, own = (min(part) for part in zip(*pairs, strict=True))
        rows.append([name, f"{whole:.2f}", f"{whole / alone:.3f}", f"{own / alone:.3f}"])
    header = ("probe", "CPU seconds", "of an iteration", "without the base's trajectories")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
