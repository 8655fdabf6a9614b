"""How evenly prompts can be dealt to 8 to 1,024 ranks, and what the ranks send each other.

    python benchmarks ranks

Prints the tables of docs/distributed.md. The division is the real one, `aegpo.allocation.sharding`,
of the sizes that the real allocators give to prompts whose ΔEntropy is log-normal.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch

from aegpo.allocation import Allocator, MedianSplitAllocator, ProportionalAllocator
from aegpo.allocation.sharding import shard_loads
from aegpo.entropy import EntropyReading

RANKS = (8, 64, 256, 1024)
PROMPTS = (1, 2, 4, 8, 16)  # a rank
DRAWS = 20
ALLOCATORS: dict[str, Allocator] = {
    "8 / 16 by the median": MedianSplitAllocator(8, 16),
    "in proportion, mean 12": ProportionalAllocator(images_per_prompt=12, minimum=4),
}


def largest_over_mean(allocator: Allocator, ranks: int, prompts: int, draws: int) -> float:
    """The most loaded rank's images over the mean, on average over draws of ΔEntropy.

    Args:
        allocator: What sizes the groups.
        ranks: Number of ranks.
        prompts: Prompts a rank, on average.
        draws: How many ΔEntropy are drawn.

    Returns:
        The ratio, 1 where all ranks do the same.
    """
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(draws):
        count = ranks * prompts
        delta = torch.randn(count, generator=generator).mul(0.5).exp()
        sizes = allocator(EntropyReading(torch.zeros(count, 2), delta), count)
        loads = shard_loads(sizes, ranks).double()
        ratios.append(float(loads.max() / loads.mean()))
    return statistics.fmean(ratios)


def bytes_of_a_step(trained: float, ranks: int) -> float:
    """Bytes that a rank sends in one optimizer step: gradients in fp32, in a ring."""
    return 4 * trained * 2 * (ranks - 1) / ranks


def bytes_of_an_iteration(images: int, prompts: int, transitions: int, steps: int) -> int:
    """Bytes that all ranks together contribute beside the gradients, in one iteration.

    Args:
        images: N, of all ranks.
        prompts: B, of all ranks.
        transitions: E, of all ranks, which is also what the meter of the update counts.
        steps: T.

    Returns:
        Scores and groups, canaries, curves of policy and reference, decisions, the update's meter.
    """
    scores, canaries = images * (8 + 8), images * 4 * 4 + prompts * 4
    curves, decisions = 2 * prompts * (steps + 1) * 8, prompts * (2 + 2 * steps) * 8
    return scores + canaries + curves + decisions + transitions * (7 * 4 + 2 * 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks ranks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="two draws")
    draws = 2 if parser.parse_args(arguments).quick else DRAWS
    for name, allocator in ALLOCATORS.items():
        print(f"\nlargest over mean work, {name}\n")
        print("| prompts a rank | " + " | ".join(f"{ranks:,} ranks" for ranks in RANKS) + " |")
        print("| --- |" + " --- |" * len(RANKS))
        for prompts in PROMPTS:
            row = [largest_over_mean(allocator, ranks, prompts, draws) for ranks in RANKS]
            print(f"| {prompts} | " + " | ".join(f"{ratio:.3f}" for ratio in row) + " |")
    print("\nbytes that a rank sends in an optimizer step, by millions of trained parameters\n")
    print("| trained | " + " | ".join(f"{ranks:,} ranks" for ranks in RANKS) + " |")
    print("| --- |" + " --- |" * len(RANKS))
    for millions in (1, 20, 2500, 12000):
        sent = [bytes_of_a_step(millions * 1e6, ranks) / 2**20 for ranks in RANKS]
        print(f"| {millions:,} M | " + " | ".join(f"{size:,.0f} MiB" for size in sent) + " |")
    print("\nbytes of an iteration beside the gradients, 8 prompts a rank, 4 of 10 steps\n")
    for ranks in RANKS:
        prompts = 8 * ranks
        total = bytes_of_an_iteration(12 * prompts, prompts, 48 * prompts, 10)
        print(f"{ranks:,} ranks: {total / 2**20:.2f} MiB gathered by each")


if __name__ == "__main__":
    main()
