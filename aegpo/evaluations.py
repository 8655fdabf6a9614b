"""Model evaluations spent, by purpose: the cost against which learning curves are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from aegpo.distributed import all_reduce_sum, world

PURPOSES = ("rollout", "probe", "reference", "update", "validation", "other")
TRAINING = ("rollout", "probe", "reference", "update")
"""What the cost of training is the sum of, as `cost/evaluations` has it."""
_UPDATE_COST = 3  # a backward pass costs about two forward passes


class EvaluationCounter:
    """Counts one sample through the denoiser as one evaluation, with a backward pass as three.

    `Policy.forward` calls `add`; whoever knows why the policy is run says so around it::

        with policy.evaluations.charge("probe"):
            rollout(policy, ...)

    Attributes:
        counts: Evaluations of this process by purpose, every purpose present; on rank 0 with those
            that all ranks had spent before the run was resumed, so that sums over ranks hold.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(PURPOSES, 0)
        self._purpose = "other"

    @property
    def purpose(self) -> str:
        """Who pays at present; ``"other"`` outside every `charge`."""
        return self._purpose

    @property
    def total(self) -> int:
        """The cost of training: rollout, probe, reference and update, not validation or other."""
        return sum(self.counts[purpose] for purpose in TRAINING)

    def add(self, evaluations: int, graph: bool = True) -> None:
        """Counts evaluations for the present purpose, three times each while it is ``"update"``.

        Args:
            evaluations: Samples through the denoiser, twice with guidance.
            graph: Whether an update goes back through them; once each if it does not.
        """
        cost = _UPDATE_COST if self._purpose == "update" and graph else 1
        self.counts[self._purpose] += cost * evaluations

    @contextmanager
    def charge(self, purpose: str) -> Iterator[None]:
        """Charges what is evaluated inside to a purpose.

        Charges nest and the innermost one pays: a reference forward inside an update is
        ``with charge("update"): ... with charge("reference"): ...``. `rollout` itself never
        charges; its caller does.

        Args:
            purpose: One of `PURPOSES`.

        Yields:
            Nothing.

        Raises:
            ValueError: If the purpose is none of these.
        """
        if purpose not in self.counts:
            raise ValueError(f"unknown purpose {purpose!r}; choose one of {', '.join(PURPOSES)}")
        outer, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = outer

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Takes up the counts of a checkpoint, which are those of all ranks together.

        Rank 0 takes them and every other rank starts at 0, so that the sum over ranks goes on from
        what was saved, whatever the number of ranks then and now.

        Args:
            state: What `evaluations_by_purpose` returned.

        Raises:
            ValueError: If its purposes are not `PURPOSES`.
        """
        if set(state) != set(PURPOSES):
            raise ValueError(
                f"evaluation counts name the purposes {sorted(state)}, expected {sorted(PURPOSES)}"
            )
        _, rank = world()
        self.counts = {purpose: int(state[purpose]) if rank == 0 else 0 for purpose in PURPOSES}


def evaluations_by_purpose(counter: EvaluationCounter, device: torch.device) -> dict[str, int]:
    """The evaluations of all ranks together, as checkpoints hold them and `cost/` logs them.

    Every rank has to call it.

    Args:
        counter: This rank's counts.
        device: Device of this rank, over which the sums travel.

    Returns:
        Model evaluations since the start of the run by purpose, every purpose present.
    """
    return {
        purpose: int(all_reduce_sum(float(counter.counts[purpose]), device)) for purpose in PURPOSES
    }


def total_evaluations(counter: EvaluationCounter, device: torch.device) -> float:
    """The cost of training so far on all ranks together, as `cost/evaluations` has it.

    Args:
        counter: This rank's counts.
        device: Device of this rank, over which the sum travels.

    Returns:
        Model evaluations since the start of the run.
    """
    return all_reduce_sum(float(counter.total), device)
