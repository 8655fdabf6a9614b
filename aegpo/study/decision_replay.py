"""Replays a decision log with another allocator or step selector, and says what would differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aegpo.allocation import Allocator
from aegpo.exploration import StepSelector
from aegpo.noise import KeyedNoise
from aegpo.study.decision_log import Decision


@dataclass(frozen=True, eq=False)
class SizeAgreement:
    """How another allocator's group sizes differ, over all prompts of all iterations.

    Args:
        same: Share of the prompts that get the same number of images.
        moved: Share of the images that go to another prompt.
        correlation: Correlation of the two sizes inside an iteration; NaN where either never
            varies.
    """

    same: float
    moved: float
    correlation: float


@dataclass(frozen=True, eq=False)
class StepAgreement:
    """How another selector's steps differ, over all prompts of all iterations.

    Args:
        same: Share of the prompts that explore and branch at exactly the same steps.
        overlap: Steps chosen by both over steps chosen by either, mean over prompts.
        logged: Share of the prompts that explored at each step in the run, shape (T,).
        replayed: The same for the other selector, shape (T,).
    """

    same: float
    overlap: float
    logged: Tensor
    replayed: Tensor


def replay_sizes(decisions: Sequence[Decision], allocator: Allocator) -> list[Tensor]:
    """Allot the images of every logged iteration again.

    Args:
        decisions: The log.
        allocator: Who allots; the run's own gives back what was logged.

    Returns:
        Group sizes of each iteration, int64, shape (B,) each.
    """
    return [allocator(decision.entropy, len(decision.index)) for decision in decisions]


def compare_sizes(decisions: Sequence[Decision], allocator: Allocator) -> SizeAgreement:
    """Set another allocator against what was decided.

    Args:
        decisions: The log, at least one iteration.
        allocator: The other allocator.

    Returns:
        Their agreement.

    Raises:
        ValueError: If the log is empty.
    """
    _require(decisions)
    logged = [decision.group_sizes.double() for decision in decisions]
    replayed = [sizes.double() for sizes in replay_sizes(decisions, allocator)]
    before, after = torch.cat(logged), torch.cat(replayed)
    inside = [torch.cat([sizes - sizes.mean() for sizes in part]) for part in (logged, replayed)]
    # Half of the differences, because an image that one prompt loses another one gains.
    moved = (before / before.sum() - after / after.sum()).abs().sum() / 2
    return SizeAgreement(
        same=float((before == after).double().mean()),
        moved=float(moved),
        correlation=float((inside[0] @ inside[1]) / (inside[0].norm() * inside[1].norm())),
    )


def compare_steps(decisions: Sequence[Decision], selector: StepSelector) -> StepAgreement:
    """Set another step selector against what was decided.

    Selectors that draw lots draw with the run's own seed, iteration and prompts.

    Args:
        decisions: The log, at least one iteration.
        selector: The other selector; the run's own gives back what was logged.

    Returns:
        Their agreement.

    Raises:
        ValueError: If the log is empty.
    """
    _require(decisions)
    same, replayed = [], []
    for decision in decisions:
        noise = KeyedNoise(decision.seed, decision.iteration)
        selector.load_state_dict(decision.selector_state())
        schedule = selector(decision.entropy, noise, decision.index, decision.num_steps)
        schedule = schedule.fit(decision.group_sizes)  # as the run does: no more splits than images
        same.append(decision.same_schedule(schedule))
        replayed.append(schedule.stochastic)
    most = max(decision.num_steps for decision in decisions)

    def together(parts: Sequence[Tensor]) -> Tensor:
        # A warm-up of fewer steps chooses none of those that it has not.
        return torch.cat([functional.pad(part, (0, most - part.shape[1])) for part in parts])

    before = together([decision.stochastic for decision in decisions])
    after = together(replayed)
    either = (before | after).sum(1).clamp_min(1)
    # Prompts without any step on either side agree.
    overlap = ((before & after).sum(1) + ~(before | after).any(1)) / either
    return StepAgreement(
        same=float(torch.cat(same).double().mean()),
        overlap=float(overlap.mean()),
        logged=before.double().mean(0),
        replayed=after.double().mean(0),
    )


def _require(decisions: Sequence[Decision]) -> None:
    if not decisions:
        raise ValueError("the decision log is empty: no iteration was logged")
