"""What has changed since the base: paired over held-out images, and over the first iterations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aegpo.utilities.checks import require_positive


@dataclass(frozen=True)
class Change:
    """A mean before and now.

    Attributes:
        since: The iteration that it is compared with.
        before: The mean at that time.
        now: The mean now, over the same images.
        errors: The change in standard errors; 0 where there is nothing to take one from.
        deviations: The change in standard deviations between the images of before.
    """

    since: int
    before: float
    now: float
    errors: float
    deviations: float

    def __str__(self) -> str:
        """From what to what, for a message."""
        return f"from {self.before:.3f} to {self.now:.3f} ({self.errors:+.1f} standard errors)"


@dataclass(frozen=True, eq=False)
class HeldOutValues:
    """One evaluation of the held-out images, image by image, over all ranks.

    The noise of an image is fixed by its index, so two evaluations of the same prompt and index
    differ by what was learned only.

    Attributes:
        iteration: Training iterations before it.
        keys: Index and text (`aegpo.prompts.known_texts.fingerprint`) of each image, (n, 2) int64,
            no row twice.
        values: What was measured of each image by name, (n,) float64, NaN where it is missing.
    """

    iteration: int
    keys: Tensor
    values: Mapping[str, Tensor]

    def since(self, before: HeldOutValues, name: str) -> Change | None:
        """How a mean has changed, over the images that both evaluations have a value of.

        Args:
            before: An earlier evaluation.
            name: What to compare.

        Returns:
            The change, its error that of the images' paired differences; None if they have no
            image in common.
        """
        if name not in before.values:
            return None
        earlier = {(index, text): row for row, (index, text) in enumerate(before.keys.tolist())}
        rows = [(row, earlier.get((one, two))) for row, (one, two) in enumerate(self.keys.tolist())]
        both = (
            torch.tensor([pair for pair in rows if pair[1] is not None], device="cpu")
            .reshape(-1, 2)
            .long()
        )
        now, then = self.values[name][both[:, 0]], before.values[name][both[:, 1]]
        finite = now.isfinite() & then.isfinite()
        if not bool(finite.any()):
            return None
        now, then = now[finite], then[finite]
        change = float((now - then).mean())
        error = float((now - then).std() / math.sqrt(len(now))) if len(now) > 1 else math.nan
        spread = float(then.std()) if len(then) > 1 else math.nan
        return Change(
            before.iteration,
            float(then.mean()),
            float(now.mean()),
            in_units(change, error),
            in_units(change, spread),
        )

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors only."""
        return {"iteration": self.iteration, "keys": self.keys, "values": dict(self.values)}


class FirstAndLatest:
    """Numbers of the first few iterations and of the latest few, of those that have them all.

    Args:
        window: How many iterations the first few are.

    Raises:
        ValueError: If `window` is below 1.
    """

    def __init__(self, window: int) -> None:
        require_positive("window", window)
        self.window = window
        self.first: list[dict[str, float]] = []
        self.latest: deque[dict[str, float]] = deque(maxlen=window)

    def add(self, numbers: dict[str, float]) -> None:
        """Take note of an iteration; one with a number that is not finite is left out."""
        if not all(math.isfinite(number) for number in numbers.values()):
            return
        if len(self.first) < self.window:
            self.first.append(numbers)
        else:
            self.latest.append(numbers)

    def change(self, name: str) -> Change | None:
        """How the mean of a number has changed; None before both windows are full."""
        if len(self.latest) < self.window:
            return None
        first, latest = (
            torch.tensor([one[name] for one in part], dtype=torch.float64, device="cpu")
            for part in (self.first, self.latest)
        )
        change = float(latest.mean() - first.mean())
        many = self.window > 1
        error = float(((first.var() + latest.var()) / self.window).sqrt()) if many else math.nan
        spread = float(first.std()) if many else math.nan
        return Change(
            self.window,
            float(first.mean()),
            float(latest.mean()),
            in_units(change, error),
            in_units(change, spread),
        )

    def share(self, name: str) -> float:
        """The latest mean as a share of the first: 1 before there are both, or where it is 0."""
        first, latest = (sum(one[name] for one in part) for part in (self.first, self.latest))
        if not self.latest or first == 0:
            return 1.0
        return (latest / len(self.latest)) / (first / len(self.first))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"first": list(self.first), "latest": list(self.latest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, as far as it fits into this window."""
        numbers = [*state["first"], *state["latest"]]
        self.first, self.latest = numbers[: self.window], deque(maxlen=self.window)
        self.latest.extend(numbers[len(self.first) :])


def in_units(change: float, unit: float) -> float:
    """A change in units of an error or a deviation: 0 without a unit, infinite where it is 0."""
    if change == 0 or math.isnan(unit):
        return 0.0
    return change / unit if unit > 0 else math.copysign(math.inf, change)


def root_mean_square(tensor: Tensor) -> Tensor:
    """Of each row over all its numbers, shape (n,), fp32."""
    flat = tensor.detach().float().flatten(1)
    return flat.square().mean(1).sqrt()
