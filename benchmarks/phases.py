"""Where the time of a recipe's step goes, and how many images a second that makes.

    python benchmarks phases                              # the quickstart; on a GPU all for one GPU
    python benchmarks phases --quick
    python benchmarks phases flux1_dev --hardware 1x24gb quantized --iterations 3
    python benchmarks phases sdxl --images 4 --iterations 2
    python benchmarks phases sd15 --tiny                  # the path of a full size, on a CPU
    python benchmarks phases sd35_medium --iterations 2 -- --model.num_steps 4

A recipe is trained for a few iterations: the quickstart as it is, the others at their published
sizes with random weights and the JPEG reward; what stands after `--` goes to `aegpo fit`. Printed
are seconds and evaluations by phase, of which the first iteration, which warms up, is no part;
memory beside what `aegpo plan` says; the share of the floor (FLOPs of all evaluations, three for a
sample in an update, over the measured rate of a matrix product); and how far a first ratio is
from 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from machine import heading
from random_weights import CLASSES
from trainings import QUICKSTART, Measured, Recipe, measure

from aegpo.utilities.tables import markdown_table

RECIPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (QUICKSTART, ()),
    ("sd15", ("1x24gb",)),
    ("sd15", ("1x80gb",)),
    ("sdxl", ("1x24gb",)),
    ("sdxl", ("1x80gb",)),
    ("sd35_medium", ("1x24gb",)),
    ("sd35_medium", ("1x80gb",)),
    ("flux1_dev", ("1x24gb", "quantized")),
    ("flux1_dev", ("1x80gb",)),
)
"""The shipped recipes for one GPU."""
FEW = 24
"""Images of an iteration with `--quick`."""
SUMMARY = (
    *("recipe", "images", "seconds", "images a second", "GPU-hours per 100,000 images"),
    *("share of the floor", "peak GiB", "plan GiB", "first ratio from 1"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    # argparse takes what follows `--` with the first positional, so it does not get to see it.
    typed = list(sys.argv[1:] if arguments is None else arguments)
    own, more = typed, []
    if "--" in typed:
        own, more = typed[: typed.index("--")], typed[typed.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        prog="python benchmarks phases",
        description=(__doc__ or "").splitlines()[0],
        epilog="after --: more arguments of aegpo fit",
    )
    parser.add_argument("model", nargs="*", help=", ".join([QUICKSTART, *sorted(CLASSES)]))
    parser.add_argument("--hardware", nargs="+", default=["1x80gb"], help="of configs/hardware")
    parser.add_argument("--overlays", nargs="+", default=[], help="of configs/overlays")
    parser.add_argument("--iterations", type=int, help="the first is not counted; 3, or 2 if quick")
    parser.add_argument("--images", type=int, help="of an iteration; the recipe's by default")
    parser.add_argument("--tiny", action="store_true", help="a small model, for a look at the path")
    parser.add_argument("--quick", action="store_true", help=f"few images, {FEW} at most")
    options = parser.parse_args(own)
    if unknown := set(options.model) - {QUICKSTART, *CLASSES}:
        parser.error(f"there is no model {', '.join(unknown)}")
    few = 4 if options.tiny else FEW if options.quick else None
    print(heading(), flush=True)
    rows = []
    for model, hardware in _asked(options):
        images = options.images or few
        recipe = Recipe(model, hardware, options.overlays, images, options.tiny, more)
        found = measure(recipe, options.iterations or (2 if few else 3), tell)
        print(f"\n{report(found)}\n", flush=True)
        rows.append(summary(found, str(recipe)))
    print(markdown_table(SUMMARY, rows))


def _asked(options: argparse.Namespace) -> list[tuple[str, Sequence[str]]]:
    """The recipes: those that were named, or all that this machine can run as they are."""
    if options.model:
        return [(name, () if name == QUICKSTART else options.hardware) for name in options.model]
    cuda = torch.cuda.is_available() and not options.tiny
    return list(RECIPES if cuda else RECIPES[:1])


def tell(row: dict[str, float]) -> None:
    """Print the phases of an iteration that has ended."""
    phases = [
        f"{key.removeprefix('seconds/')} {value:.2f}"
        for key, value in row.items()
        if key.startswith("seconds/")
    ]
    print(f"seconds: {', '.join(phases)}; peak {row['memory/peak_gib']:.1f} GiB", flush=True)


def report(found: Measured) -> str:
    """The table of phases, for the iterations after the first, and what belongs to it."""
    seconds, spent = found.seconds(), found.spent()
    total = sum(seconds.values())
    rows = []
    for phase, duration in seconds.items():
        cost = f"{spent[phase]:,.0f}" if phase in spent else ""
        rows.append([phase, f"{duration:.3f}", f"{100 * duration / total:.0f} %", cost])
    return (
        f"{markdown_table((found.model, 'seconds', 'of the step', 'evaluations'), rows)}\n\n"
        f"denoiser {found.parameters / 1e9:.3f} B parameters; {found.flops / 1e12:.3g} TFLOP an "
        f"evaluation; matrix product {found.rate / 1e12:.3g} TFLOP/s"
    )


def summary(found: Measured, recipe: str) -> list[str]:
    """A recipe's line in the table of all."""
    speed = found.images_a_second
    planned = "" if found.planned_gib is None else f"{found.planned_gib:.2f}"
    return [
        recipe,
        str(found.images),
        f"{sum(found.seconds().values()):.2f}",
        f"{speed:.2f}",
        f"{100_000 / speed / 3600:.1f}",
        f"{100 * found.floor_share:.0f} %" if found.flops else "",
        "" if found.device.type == "cpu" else f"{found.peak_gib:.2f}",  # there see `memory`
        planned,
        f"{found.first_ratio:.1e}",
    ]


if __name__ == "__main__":
    main()
