"""Images and rewards spent, the other price of a training beside model evaluations."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from aegpo.distributed import all_reduce_sum, world

KINDS = ("images", "rewards", "images_trained")


class ImageCounts:
    """Counts images drawn, scores asked for, and images trained on.

    Attributes:
        counts: Of this process by kind; on rank 0 with those that all ranks had counted before the
            run was resumed, so that sums over ranks hold. None in a run that goes on from a
            checkpoint without them.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] | None = dict.fromkeys(KINDS, 0)

    def add(self, images: int, rewards: int, images_trained: int) -> None:
        """Count an iteration of this rank.

        Args:
            images: Images drawn.
            rewards: Scores asked for.
            images_trained: Images that the updates learn from.
        """
        if self.counts is not None:
            for kind, number in zip(KINDS, (images, rewards, images_trained), strict=True):
                self.counts[kind] += number

    def over_ranks(self, device: torch.device) -> dict[str, int]:
        """The counts of all ranks together; every rank has to call it.

        Args:
            device: Device of this rank, over which the sums travel.

        Returns:
            Counts since the start of the run by kind; empty if they are not known.
        """
        if self.counts is None:
            return {}
        return {kind: int(all_reduce_sum(float(self.counts[kind]), device)) for kind in KINDS}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the counts of a checkpoint, which are those of all ranks together.

        Args:
            state: What `over_ranks` returned; empty where a checkpoint has none.
        """
        _, rank = world()
        self.counts = {kind: int(state[kind]) * (rank == 0) for kind in KINDS} if state else None
