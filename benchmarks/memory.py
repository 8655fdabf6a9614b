"""Peak memory of training beside what `aegpo plan` says of it.

    python benchmarks memory                    # the quickstart; on a GPU all recipes for one GPU
    python benchmarks memory --quick
    python benchmarks memory --recipes sd35_medium flux1_dev

On a GPU the peak is that of torch's allocator, to which the CUDA context, about a GiB, does not
belong, as it does not to the plan. On a CPU it is the weights and all bytes that torch's allocator
gave out and did not get back from the first of two iterations on (one with `--quick`), as its
profiler sees them: what rewards hold by then does not belong to the plan either. Beside it stands
how much the process grew, with the libraries' own buffers and what the allocator keeps for later.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from machine import heading
from phases import FEW, RECIPES
from torch.profiler import ProfilerActivity, profile
from trainings import QUICKSTART, Measured, Recipe, measure

from aegpo.utilities.tables import markdown_table

HEADER = ("recipe", "images", "plan MiB", "peak MiB", "peak / plan", "process grew by MiB")
EVERY = 0.01
"""Seconds between two looks at the process."""


@dataclass
class Peaks:
    """What was held at most inside a context, in bytes beyond what was there before.

    Attributes:
        changes: Of the bytes that torch's allocator had given out on the CPU: when, in nanoseconds
            since 1970, and by how much.
        process: By the process.
    """

    changes: list[tuple[int, int]] = field(default_factory=list)
    process: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, watch both."""
        process = psutil.Process()
        before = process.memory_info().rss

        def look() -> None:
            while not self._done.wait(EVERY):
                self.process = max(self.process, process.memory_info().rss - before)

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                yield
        finally:
            self._done.set()
            looking.join()
        # `events()` leaves those out that belong to an operation; one level below are all.
        kept: Any = profiled.profiler
        events = kept.kineto_results.events()
        self.changes = sorted(
            (one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"
        )

    def allocated(self, since_ns: int) -> int:
        """The highest sum of what was given out, and taken back, from then to any moment."""
        held = highest = 0
        for when, change in self.changes:
            if when >= since_ns:
                held += change
                highest = max(highest, held)
        return highest


def row(recipe: Recipe, iterations: int) -> list[str]:
    """Train a recipe for some iterations; its line of the table."""
    peaks = Peaks()
    cuda = torch.cuda.is_available() and not recipe.tiny
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        found = measure(recipe, iterations, lambda row: None)
        peak = torch.cuda.max_memory_allocated()
    else:
        found = measure(recipe, iterations, lambda row: None, peaks.watched)
        peak = found.weight_bytes + peaks.allocated(found.begun_ns)
    planned = _mib(found)
    return [
        str(recipe),
        str(found.images),
        "" if planned is None else f"{planned:.0f}",
        f"{peak / 2**20:.0f}",
        "" if planned is None else f"{peak / 2**20 / planned:.2f}",
        "" if cuda else f"{peaks.process / 2**20:.0f}",
    ]


def _mib(found: Measured) -> float | None:
    return None if found.planned_gib is None else 1024 * found.planned_gib


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks memory", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--recipes", nargs="+", help="models; all for one GPU by default")
    parser.add_argument("--images", type=int, help="of an iteration; the recipe's by default")
    parser.add_argument("--tiny", action="store_true", help="small models, for a look at the path")
    parser.add_argument("--quick", action="store_true", help=f"{FEW} images, no overlays")
    options = parser.parse_args(arguments)
    print(f"{heading()}\n", flush=True)
    images = options.images or (FEW if options.quick else None)
    cuda = torch.cuda.is_available() and not options.tiny
    asked = options.recipes or ([name for name, _ in RECIPES] if cuda else [QUICKSTART])
    recipes = [
        Recipe(model, hardware, images=images, tiny=options.tiny)
        for model, hardware in RECIPES
        if model in asked
    ]
    if QUICKSTART in asked and not options.quick:
        recipes += [
            Recipe(QUICKSTART, overlays=(name,)) for name in ("aegpo_tree", "grpo", "diffusion_nft")
        ]
    print(markdown_table(HEADER, [row(recipe, 1 if options.quick else 2) for recipe in recipes]))


if __name__ == "__main__":
    main()
