"""The control of all learning: advantages from rewards that belong to other images."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.advantages.group_relative import Advantages, GroupRelative, Scale
from aegpo.noise import KeyedNoise


class ShuffledRewards(GroupRelative):
    """Group-relative advantages of rewards that were shuffled inside their group.

    A policy must not learn from them; one that does learns from a mistake in the code. Rewards
    that are logged and evaluated stay true. The order is keyed by the group's rewards themselves,
    so it is new at every iteration and needs no state.

    Args:
        scale: See `GroupRelative`.
        clip: Largest absolute advantage.
        eps: Added to the standard deviation.
        seed: Key of the order.
    """

    def __init__(
        self, scale: Scale = "group", clip: float = 5.0, eps: float = 1e-4, seed: int = 0
    ) -> None:
        super().__init__(scale, clip, eps)
        self.noise = KeyedNoise(seed)

    def __call__(self, rewards: Tensor, group: Tensor) -> Advantages:
        """Shuffle what is not missing, then compare; see `GroupRelative.__call__`."""
        shuffled = rewards.clone()
        for number in torch.unique(group):
            member = ((group == number) & rewards.isfinite()).nonzero().flatten()
            own = rewards[member].detach().float()
            order = self.noise.permutation(
                "shuffled rewards", own.cpu().view(torch.int32).tolist(), len(own)
            )
            shuffled[member] = rewards[member[order.to(member.device)]]
        return super().__call__(shuffled, group)
