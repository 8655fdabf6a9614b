"""A served reward under load, and while its services are killed, ended, started again, or full.

    python benchmarks rewards [--askers 8] [--calls 40] [--images 32] [--quick]

Services are real processes of `aegpo serve-reward` on this machine, askers are threads with a
`RemoteReward` each. Every score is compared, to the bit, with the one that the same reward gives
here. What a service scored beside what was asked for is work that was done again after a fault;
none of it is in a result, where each image has one place.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from local_http import fetched
from served_rewards import ServedProcess
from torch import Tensor

from aegpo.rewards import JpegCompressibility, RemoteReward, Reward, ShapesMatch
from aegpo.rewards.checks.samples import RewardSamples, drawings
from aegpo.utilities.tables import markdown_table

MATCH = "aegpo.rewards.ShapesMatch"
BATCH = 8
"""Images of a request."""


class Load:
    """Askers that ask at the same time, and what they got.

    Args:
        urls: The services.
        pool: What they ask about.
        askers: How many.
        calls: Calls of each.
        images: Images of a call.
    """

    def __init__(
        self,
        urls: Sequence[str],
        pool: RewardSamples,
        askers: int,
        calls: int,
        images: int,
    ) -> None:
        self.urls, self.pool = list(urls), pool
        self.askers, self.calls, self.images = askers, calls, images
        self.done = 0
        self.answers: list[tuple[list[int], Tensor]] = []
        self.longest = self.seconds = 0.0
        self._lock = threading.Lock()

    @property
    def asked(self) -> int:
        """Images of all calls."""
        return self.askers * self.calls * self.images

    def run(self, actions: Sequence[tuple[float, Callable[[], object]]] = ()) -> None:
        """Ask everything; when a share of the calls is done, do what is to be done then."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.askers)]
        for thread in threads:
            thread.start()
        for share, action in actions:
            while self.done < share * self.askers * self.calls:
                time.sleep(0.005)
            action()
        for thread in threads:
            thread.join()
        self.seconds = time.monotonic() - began

    def _ask(self, number: int) -> None:
        reward = RemoteReward(self.urls, batch=BATCH)
        generator = torch.Generator().manual_seed(number)
        for _ in range(self.calls):
            rows = torch.randint(len(self.pool), (self.images,), generator=generator).tolist()
            chosen, began = self.pool.select(rows), time.monotonic()
            scores = reward(chosen.images, chosen.prompts, chosen.metadata)
            with self._lock:
                self.longest = max(self.longest, time.monotonic() - began)
                self.answers.append((rows, scores))
                self.done += 1

    def wrong(self) -> tuple[int, int]:
        """Missing scores, and others than the reward gives here to the same batches."""
        here, missing, other = ShapesMatch(), 0, 0
        for rows, scores in self.answers:
            for first in range(0, len(rows), BATCH):
                part = self.pool.select(rows[first : first + BATCH])
                got = scores[first : first + BATCH]
                lost = got.isnan()
                missing += int(lost.sum())
                other += int((got != here(part.images, part.prompts, part.metadata))[~lost].sum())
        return missing, other

    def row(self, name: str, scored: int | None, put_off: int) -> list[str]:
        """What a table says of it."""
        requests = self.askers * self.calls * -(-self.images // BATCH)
        missing, other = self.wrong()
        return [
            *(name, f"{requests:,}", f"{self.asked:,}", str(missing), str(other)),
            *("" if scored is None else f"{scored - self.asked:,}", f"{put_off:,}"),
            *(f"{self.seconds:.1f}", f"{self.asked / self.seconds:,.0f}", f"{self.longest:.2f}"),
        ]


class Services:
    """The processes; `scored` counts what they did, those that were killed too.

    Args:
        folder: Where they run.
        stack: Ends them.
        options: Of each.
    """

    def __init__(self, folder: Path, stack: ExitStack, *options: str) -> None:
        self.folder, self.stack, self.options = folder, stack, options
        self.running = [self._started(0), self._started(0)]
        self.urls = [one.url for one in self.running]
        self.before = 0

    def _started(self, port: int) -> ServedProcess:
        return self.stack.enter_context(ServedProcess(self.folder, MATCH, *self.options, port=port))

    def end(self, place: int, number: signal.Signals) -> None:
        """Kill or end one."""
        process = self.running[place]
        done = health(process.url)["images"]
        if process.end(number) == 0:  # what it had taken has been scored, and counted
            done = int(process.said().split("scored ")[1].split()[0])
        self.before += done

    def start(self, place: int) -> None:
        """Start one again, where it was."""
        self.running[place] = self._started(self.running[place].port)

    def told(self, key: str) -> int:
        """The sum over those that run."""
        return sum(health(one.url)[key] for one in self.running if one.process.is_alive())


def health(url: str) -> dict[str, int]:
    """What a service has done."""
    found: dict[str, int] = json.loads(fetched(f"{url}/health")[1])
    return found


def faults(askers: int, calls: int, images: int, folder: Path, quick: bool) -> list[list[str]]:
    """The rows of the table of faults."""
    pool = drawings(16, 4)
    pool = RewardSamples((pool.images * 255).round() / 255, pool.prompts, pool.metadata)
    kill, end = signal.SIGKILL, signal.SIGTERM
    scenarios: dict[str, tuple[tuple[str, ...], Callable[[Services], list[object]]]] = {
        "nothing": ((), lambda s: []),
        "one is killed, and started again": (
            (),
            lambda s: [(0.3, lambda: s.end(0, kill)), (0.6, lambda: s.start(0))],
        ),
        "both are ended and started again, in turn": (
            (),
            lambda s: [
                *((0.2, lambda: s.end(0, end)), (0.3, lambda: s.start(0))),
                *((0.6, lambda: s.end(1, end)), (0.7, lambda: s.start(1))),
            ],
        ),
        "both are killed at once, and started again": (
            (),
            lambda s: [
                *((0.4, lambda: s.end(0, kill)), (0.4, lambda: s.end(1, kill))),
                *((0.4, lambda: s.start(0)), (0.4, lambda: s.start(1))),
            ],
        ),
        "no queue: one request is held at a time": (("--queue", "0"), lambda s: []),
    }
    rows = []
    for name in list(scenarios)[: 2 if quick else None]:
        options, actions = scenarios[name]
        with ExitStack() as stack:
            services = Services(folder, stack, *options)
            load = Load(services.urls, pool, askers, calls, images)
            load.run(actions(services))  # type: ignore[arg-type]
            scored = services.before + services.told("images")
            rows.append(load.row(name, scored, services.told("put_off")))
    return rows


def costs(rounds: int, folder: Path, quick: bool) -> list[list[str]]:
    """What an image costs here and behind HTTP, the ways taking turns."""
    rows = []
    cases: list[tuple[str, Reward, int]] = [
        (MATCH, ShapesMatch(), 32),
        ("aegpo.rewards.JpegCompressibility", JpegCompressibility(), 512),
    ]
    for path, here, side in cases[: 1 if quick else None]:
        samples = drawings(8, 4, side)
        with ServedProcess(folder, path) as one:
            there = RemoteReward(one.url)
            taken: dict[str, list[float]] = {"here": [], "there": []}
            for _ in range(rounds + 1):
                for way, reward in (("here", here), ("there", there)):
                    began = time.perf_counter()
                    reward(samples.images, samples.prompts, samples.metadata)
                    taken[way].append((time.perf_counter() - began) * 1000 / len(samples))
        own, served = (statistics.median(taken[way][1:]) for way in ("here", "there"))
        rows.append(
            [
                path.rsplit(".", 1)[1],
                str(side),
                f"{own:.2f}",
                f"{served:.2f}",
                f"{served - own:.2f}",
            ]
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks rewards", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="few and small calls")
    parser.add_argument("--askers", type=int, default=8, help="at the same time")
    parser.add_argument("--calls", type=int, default=40, help="of each asker")
    parser.add_argument("--images", type=int, default=32, help="of a call")
    asked = parser.parse_args(arguments)
    sizes = (2, 6, 8) if asked.quick else (asked.askers, asked.calls, asked.images)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of services that are away; what is lost is in the table
        header = (
            *("what happens meanwhile", "requests", "images", "missing", "other scores"),
            *("scored beside", "put off", "seconds", "images a second", "longest call, seconds"),
        )
        print(markdown_table(header, faults(*sizes, Path(name), asked.quick)))
        print()
        header = ("reward", "pixels a side", "ms an image here", "served", "more")
        print(markdown_table(header, costs(1 if asked.quick else 7, Path(name), asked.quick)))
