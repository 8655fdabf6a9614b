"""The running agreement of half-batch gradients: how much of a gradient is signal, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aegpo.utilities.checks import require_positive


def gradient_copies(num_parts: int) -> int:
    """Copies of the trained gradients that a measurement keeps at once.

    Args:
        num_parts: K, the parts of the schedule.

    Returns:
        Those of 2 K strata, and two of their sum.
    """
    return 2 * num_parts + 2


class HalfBatches:
    """Keeps s = <g_a, g_b> / (|g_a| |g_b|) of two halves of a batch for each of P parts.

    Parts are steps or stretches of the schedule. s is the share of a gradient that both halves ask
    for, in [-1, 1]: with independent halves of signal S and noise N, both as squared norms, near
    S / (S + N).

    Args:
        parts: P.
        decay: How much of the running average is kept at a measurement, in [0, 1).
        every_n_iterations: Iterations between two measurements.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, parts: int, decay: float = 0.95, every_n_iterations: int = 1) -> None:
        name = type(self).__name__
        require_positive(f"{name}: parts", parts)
        require_positive(f"{name}: every_n_iterations", every_n_iterations)
        if not 0 <= decay < 1:
            raise ValueError(f"{name}: decay={decay} must be at least 0 and below 1")
        self.parts, self.decay, self.every_n_iterations = parts, decay, every_n_iterations
        self._sum = torch.zeros(parts, dtype=torch.float64, device="cpu")
        self._weight = torch.zeros(parts, dtype=torch.float64, device="cpu")

    def due(self, iteration: int) -> bool:
        """Whether an iteration measures.

        Args:
            iteration: The training iteration, from 0.

        Returns:
            True every so many iterations.
        """
        return iteration % self.every_n_iterations == 0

    @property
    def agreement(self) -> Tensor:
        """Mean s of each part, 0 before any, shape (P,) float64, on the CPU."""
        return self._sum / self._weight.clamp(min=1e-12)

    def learn(self, halves: Tensor, parts: Sequence[int] | None = None) -> Tensor:
        """Take in a measurement.

        Args:
            halves: Inner products <g, g'> of the 2 K gradients in question, part by part, the two
                halves of a part neighbors; shape (2 K, 2 K). A half without samples is 0.
            parts: Which K parts they are of; None for all P.

        Returns:
            Which of the P parts were measured, bool, shape (P,).
        """
        which = torch.arange(self.parts, device="cpu")
        if parts is not None:
            which = torch.tensor(list(parts), dtype=torch.int64, device="cpu")
        norm = halves.diagonal().double().sqrt().reshape(len(which), 2)
        first = torch.arange(0, 2 * len(which), 2, device="cpu")
        product = halves.double()[first, first + 1]
        cosine = torch.full_like(self._sum, float("nan"))
        cosine[which] = product / norm.prod(1)
        known = cosine.isfinite()  # not of a half without samples, nor of one that overflowed
        keep = self.decay
        self._sum = torch.where(known, keep * self._sum + (1 - keep) * cosine, self._sum)
        self._weight = torch.where(known, keep * self._weight + (1 - keep), self._weight)
        return known

    def told(self, parts: str, share: Tensor) -> dict[str, float]:
        """What is logged of a measurement.

        Args:
            parts: What the parts are, `steps` or `levels`: the beginning of the tags.
            share: What each of them got by it, shape (P,).

        Returns:
            The mean agreement of each part so far, and its share, by tag.
        """
        rows = zip(self.agreement.tolist(), share.tolist(), strict=True)
        return {
            f"{parts}/{name}_{part}": value
            for part, row in enumerate(rows)
            for name, value in zip(("agreement", "share"), row, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """The running averages: tensors and plain values only."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the averages of a checkpoint, unless its parts are others.

        Args:
            state: What `state_dict` returned; empty to begin anew.
        """
        if not self.takes(state):
            self._sum, self._weight = torch.zeros_like(self._sum), torch.zeros_like(self._weight)
            return
        self._sum, self._weight = state["sum"].double().cpu(), state["weight"].double().cpu()

    def takes(self, state: Mapping[str, Any]) -> bool:
        """Whether a state is of as many parts.

        Args:
            state: What `state_dict` returned, or empty.

        Returns:
            False for an empty one.
        """
        return bool(state) and len(state["sum"]) == self.parts


class HalvesByStep(HalfBatches):
    """The agreement of each step that may explore, and how often it was measured.

    Args:
        parts: T - 1 steps.
        decay: How much of the running average is kept at a measurement, in [0, 1).
        every_n_iterations: Iterations between two measurements.
        prior: Measurements that what is known beforehand counts as, above 0.
    """

    def __init__(self, parts: int, decay: float, every_n_iterations: int, prior: float) -> None:
        super().__init__(parts, decay, every_n_iterations)
        self.prior = prior
        self.watched: list[int] = []
        self._count = torch.zeros(parts, dtype=torch.float64, device="cpu")

    @property
    def count(self) -> Tensor:
        """Measurements of each step, shape (P,) float64, on the CPU."""
        return self._count

    def learn_watched(self, halves: Tensor) -> None:
        """Take in a measurement of the steps that explored.

        Args:
            halves: As for `HalfBatches.learn`, of the steps in `watched`.
        """
        self._count = self._count + self.learn(halves, self.watched)

    def share(self, prior: Tensor) -> Tensor:
        """What each step is worth, as a share of all.

        Steps that were measured divide among themselves what the prior gives to all of them, in
        proportion to max(s, 0), the more so the more often; the others keep what the prior gives.

        Args:
            prior: Share of each step as far as it is known beforehand, shape (P,), of sum 1.

        Returns:
            Shape (P,) float64, of sum 1 when all were measured alike often.
        """
        prior, known = prior.double(), self._count > 0
        useful = self.agreement.clamp(min=0) * known
        total, found = float(useful.sum()), prior
        if total > 0:
            found = useful / total * prior[known].sum()
        elif not bool(known.all()):  # nothing to learn where it was looked for
            found = prior * ~known
        trust = self._count / (self._count + self.prior)
        return trust * found + (1 - trust) * prior

    def state_dict(self) -> dict[str, Any]:
        """The running averages and counts."""
        return super().state_dict() | {"count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with them; see `HalfBatches.load_state_dict`."""
        super().load_state_dict(state)
        self._count = torch.zeros_like(self._count)
        if self.takes(state):
            self._count = state["count"].double().cpu()
