"""What things cost, one command a table: on a GPU if there is one, else on the CPU.

    python benchmarks                        # what there is
    python benchmarks bare --quick           # one table, within a minute
    python benchmarks bare --help            # its options
    python benchmarks all --quick            # every table, each in a process of its own

Figures that were measured, and where, are in benchmarks/README.md.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TABLES = {
    "phases": ("phases", "where a recipe's step spends its time; images a second"),
    "recipes": ("recipe_costs", "every recipe by arithmetic: evaluations, time, memory"),
    "floor": ("floor", "forward and update over the rate of a matrix product; adapters"),
    "bare": ("bare", "rollout and update over the bare calls of the networks"),
    "peer": ("peer", "rollout and update beside the functions of flow_grpo, given as a path"),
    "trees": ("trees", "a step on trees beside one on chains, at equally many images"),
    "probe": ("probe_costs", "what the entropy probe adds, by where it reads"),
    "updates": ("update_costs", "ways of updating: old means, guidance, micro-batches, adapters"),
    "memory": ("memory", "peak memory beside what `aegpo plan` says"),
    "samplers": ("samplers", "steps without noise: scores and distance by their number"),
    "start-up": ("start_up", "seconds before a command's first useful line"),
    "rewards": ("reward_service", "a served reward under load, and while its services are killed"),
    "ranks": ("rank_balance", "how evenly prompts are dealt to many ranks"),
    "threads": ("shared_machine", "threads on free and on busy cores; takes five minutes"),
}
"""By name: the module, and what its table shows."""
SLOW = ("threads",)
"""Left out of `all`: it needs a machine that does nothing else."""
LONGEST = {True: 120, False: 3600}
"""Seconds of a table in `all`, with `--quick` and without."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or all of them, or what there is.

    Args:
        arguments: Instead of those of the process.

    Returns:
        0, or 1 if a table failed, or 2 if there is none of that name.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    name, options = (typed[0], typed[1:]) if typed else ("--help", [])
    if name in ("-h", "--help"):
        print(f"{__doc__}\nTables:")
        for table, (_, says) in TABLES.items():
            print(f"  {table:<10} {says}")
        return 0
    if name == "all":
        return _all(options)
    if name not in TABLES:
        print(f"error: there is no table {name!r}; there are {', '.join(TABLES)}, and all")
        return 2
    sys.argv[1:] = []  # Lightning looks at them too
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root), str(root / "tests/helpers")]
    quiet = importlib.import_module("quiet").quiet
    with quiet():
        importlib.import_module(TABLES[name][0]).main(options)
    return 0


def _all(options: Sequence[str]) -> int:
    """Print every table; one that fails or hangs costs its own, and the status."""
    failed = []
    for name in [table for table in TABLES if table not in SLOW]:
        print(f"\n## {name}: {TABLES[name][1]}\n", flush=True)
        command = [sys.executable, str(Path(__file__).parent), name, *options]
        begun = time.monotonic()
        try:
            done = subprocess.run(command, check=False, timeout=LONGEST["--quick" in options])
            ended = "" if done.returncode == 0 else f"ended with {done.returncode}"
        except subprocess.TimeoutExpired as late:
            ended = f"stopped after {late.timeout:.0f} s"
        print(f"\n{name}: {ended or 'done'}, {time.monotonic() - begun:.0f} s", flush=True)
        failed += [name] if ended else []
    print(
        f"\n{len(TABLES) - len(SLOW) - len(failed)} tables; failed: {', '.join(failed) or 'none'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
