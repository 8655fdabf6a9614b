"""What an iteration does, settled before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise


@dataclass(frozen=True, eq=False)
class Decision:
    """Which steps explore and how many images each prompt gets; all ranks agree on it.

    Attributes:
        noise: Keyed noise of the iteration.
        schedule: Exploration schedule of the B prompts, fitted to the group sizes.
        group_sizes: Images of each prompt, shape (B,) int64.
        mine: Rows of the batch that this rank draws, int64.
    """

    noise: KeyedNoise
    schedule: ExplorationSchedule
    group_sizes: Tensor
    mine: Tensor

    def own(self) -> Decision:
        """The decision on this rank's prompts alone, a row for each of them."""
        return Decision(
            self.noise,
            self.schedule.select(self.mine),
            self.group_sizes[self.mine],
            torch.arange(len(self.mine), device="cpu"),
        )
