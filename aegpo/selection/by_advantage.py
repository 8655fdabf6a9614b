"""Images drawn in proportion to what they have to teach, with weights that leave no bias."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.distributed import all_reduce_sum
from aegpo.noise import KeyedNoise
from aegpo.selection.selection import Selection


class ByAdvantage(Selection):
    """Draws a group's images in proportion to |A|, and weighs them by 1 / p.

    p is the chance of an image to be among the `keep` of its group: min(1, c |A|), with c such that
    the chances add up to `keep`. The weights are (K / N) / p, where K of N images are kept over all
    groups and ranks, so that the mean over the kept is on average the mean over all. A weighted
    advantage is never larger than the group's mean |A|, so no later clip takes hold of it. What has
    no advantage is not drawn; of a group without any, all images have the same chance. A KL is a
    mean over the kept images, unweighted.

    Args:
        keep: Images of a group that are trained on, at least 1.
        skip_silent: Leave out groups without signal, whose advantages are all 0.

    Raises:
        ValueError: If `keep` is below 1.
    """

    unbiased = True

    def __init__(self, keep: int = 8, skip_silent: bool = False) -> None:
        super().__init__(skip_silent)
        if keep < 1:
            raise ValueError(f"ByAdvantage: keep={keep} must be at least 1")
        self.keep = keep

    def __repr__(self) -> str:
        return f"ByAdvantage(keep={self.keep})"

    def __call__(
        self, advantages: Tensor, row: Tensor, index: Tensor, noise: KeyedNoise
    ) -> Tensor | None:
        """Draw, then bring the weights to a mean over all ranks; see `Selection.__call__`."""
        weights = super().__call__(advantages, row, index, noise)
        assert weights is not None  # it chooses
        chosen = weights > 0
        # Of groups that are skipped nothing is trained on, and nothing is missing.
        counted = torch.isin(row, row[chosen].unique()) & advantages.isfinite()
        kept = all_reduce_sum(float(chosen.sum()), row.device)
        known = all_reduce_sum(float(counted.sum()), row.device)
        return weights * (kept / max(known, 1.0))

    def weigh(self, advantages: Tensor, key: int, noise: KeyedNoise) -> Tensor:
        """1 / p for the chosen; see `Selection.weigh`."""
        chance = chances(advantages, self.keep)
        sure = chance == 1
        drawn = sure.clone()
        # Systematic sampling: one random start, then steps of 1 over the chances laid end to end.
        order = noise.permutation("order of images", (key,), len(chance))
        order = order[~sure[order] & (chance[order] > 0)]
        if len(order) > 0:
            start = float(
                noise.uniform("selected images", torch.tensor([[key]], device="cpu"), ())[0]
            )
            ends = chance[order].cumsum(0)
            ends[-1] = ends[-1].round()
            crossed = (ends - start).ceil().diff(prepend=ends.new_zeros(1))
            drawn[order] = crossed > 0
        return torch.where(drawn, 1 / chance, 0.0)


def chances(advantages: Tensor, keep: int) -> Tensor:
    """The chance of each image of a group to be among those that are kept.

    Args:
        advantages: Their advantages, shape (n,), float64.
        keep: How many are kept, if as many have an advantage.

    Returns:
        min(1, c |A|) with the sum `keep`; 1 for all that have an advantage if there are no more;
        keep / n for each if none has one; shape (n,), float64.

    Examples:
        Twice the advantage is twice the chance, up to certainty:

        >>> chances(torch.tensor([-4.0, 2.0, -1.0, 1.0, 0.0]).double(), keep=2)
        tensor([1.0000, 0.5000, 0.2500, 0.2500, 0.0000], dtype=torch.float64)
    """
    size = advantages.abs()
    some = size > 0
    if not bool(some.any()):
        return torch.full_like(size, min(1.0, keep / len(size)))
    if int(some.sum()) <= keep:
        return some.to(size)
    sure = torch.zeros_like(some)
    while True:  # ends: every turn makes one more certain, and one at least never is
        rest = size.where(~sure, torch.zeros_like(size))
        chance = (keep - int(sure.sum())) * rest / rest.sum()
        beyond = (chance >= 1) & ~sure
        if not bool(beyond.any()):
            return torch.where(sure, torch.ones_like(size), chance)
        sure = sure | beyond
