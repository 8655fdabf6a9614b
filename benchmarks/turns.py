"""Ways of doing the same that take turns, so that whatever else runs slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Ways = dict[str, Callable[[], object]]


class Taken(NamedTuple):
    """What a way took.

    Args:
        seconds: Median over the rounds.
        ratio: Median over the rounds of its seconds over those of the way it is set against.
    """

    seconds: float
    ratio: float


def take_turns(
    ways: Ways,
    rounds: int,
    device: torch.device | str,
    against: Mapping[str, str] | None = None,
) -> dict[str, Taken]:
    """Let every way take its turn in every round, after one that warms up.

    Args:
        ways: What is timed, by its name.
        rounds: Rounds that count.
        device: Where it computes; a CUDA device is waited for.
        against: By a way's name, which way it is set against; the first one where it has none.

    Returns:
        What each took.
    """
    cuda = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            if number:
                seconds[way].append(time.perf_counter() - start)
    first = next(iter(ways))
    found = {}
    for way, own in seconds.items():
        others = seconds[(against or {}).get(way, first)]
        ratios = [one / other for one, other in zip(own, others, strict=True)]
        found[way] = Taken(statistics.median(own), statistics.median(ratios))
    return found
