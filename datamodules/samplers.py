"""The prompt sampler: which prompts the next iteration visits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from aegpo.noise import KeyedNoise


class DeltaEntropySampler(DistributedSampler[Any]):
    """Draws prompts with weight `(ΔEntropy + delta)^alpha`, unseen prompts first.

    One batch is drawn without replacement, lazily, so that an update of the weights acts on the
    very next batch. The draw is keyed by (seed, batch number): every rank draws the same batch and
    a resumed run draws the batch that the uninterrupted one would have drawn. It subclasses
    `DistributedSampler` (with one replica) only so that Lightning leaves it in place.

    Args:
        dataset: The prompts, M of them.
        batch_size: Prompts per iteration over all ranks.
        num_batches: Batches per epoch.
        strata: Stratum (such as the category) of every prompt, shape (M,) int64; None for one.
        shares: Share of the draws that each stratum gets, shape (S,); None for one share each.
        alpha: Exponent of the ΔEntropy weight; 0 draws uniformly inside each stratum.
        delta: Added to ΔEntropy, as a fraction of its mean, so that every prompt can be drawn.
        uniform_share: Share in [0, 1] of the probability that is uniform inside the stratum.
        seed: Key of the draws.

    Raises:
        ValueError: If a stratum is smaller than its part of a batch or a value is out of range.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        dataset: Dataset[Any],
        batch_size: int,
        num_batches: int,
        strata: Tensor | None = None,
        shares: Tensor | None = None,
        alpha: float = 1.0,
        delta: float = 0.1,
        uniform_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False, seed=seed)
        num_prompts = len(dataset)  # type: ignore[arg-type]
        if not 1 <= batch_size <= num_prompts:
            raise ValueError(
                f"batch_size={batch_size} prompts must be between 1 and the {num_prompts} prompts "
                "of the dataset: a prompt occurs at most once in a batch"
            )
        finite = math.isfinite(alpha) and math.isfinite(delta)
        if not 0 <= uniform_share <= 1 or not finite or alpha < 0 or delta <= 0:
            raise ValueError(
                f"uniform_share={uniform_share} must be in [0, 1], alpha={alpha} finite and at "
                f"least 0 and delta={delta} finite and above 0"
            )
        self.batch_size, self.num_batches = batch_size, num_batches
        self.alpha, self.delta, self.uniform_share = alpha, delta, uniform_share
        self.strata = (
            torch.zeros(num_prompts, dtype=torch.int64, device="cpu") if strata is None else strata
        )
        self.shares = (
            torch.ones(int(self.strata.max()) + 1, device="cpu") if shares is None else shares
        )
        if not bool(((self.shares >= 0) & self.shares.isfinite()).all()) or self.shares.sum() == 0:
            raise ValueError(
                f"shares {[round(float(share), 6) for share in self.shares]} must be finite and at "
                "least 0, and one of them above it; they are relative to their sum"
            )
        # float32 makes a little more or less of a decimal fraction; .7 of 10 prompts are 7 of them.
        decimal = (self.shares.double() / self.shares.double().sum()).round(decimals=7)
        self.shares = decimal / decimal.sum()
        sizes = torch.bincount(self.strata, minlength=len(self.shares))
        short = (self.shares * batch_size).round(decimals=6).ceil() > sizes
        if bool(short.any()):
            row = int(short.nonzero()[0])
            raise ValueError(
                f"stratum {row} has {int(sizes[row])} prompts, too few for its share "
                f"{float(self.shares[row]):.2f} of a batch of {batch_size}; lower the share or the "
                "batch size"
            )
        self.noise = KeyedNoise(seed)
        self.batches_drawn = 0
        self.delta_entropy = torch.full((num_prompts,), float("nan"), device="cpu")

    def update(self, index: Tensor, delta_entropy: Tensor) -> None:
        """Take note of the ΔEntropy of some prompts.

        Args:
            index: Dataset rows, shape (B,).
            delta_entropy: Their ΔEntropy in nats or normalized units, shape (B,), at least 0;
                values that are not finite are ignored.
        """
        finite = torch.isfinite(delta_entropy)
        self.delta_entropy[index[finite].cpu()] = delta_entropy[finite].float().cpu()

    def probabilities(self) -> Tensor:
        """Return each prompt's chance inside its stratum, shape (M,); each stratum sums to 1.

        Unseen prompts count as the highest ΔEntropy seen so far in any stratum.
        """
        uniform = torch.ones(len(self.strata), dtype=torch.float64, device="cpu")
        seen = torch.isfinite(self.delta_entropy)
        weights = uniform
        if self.alpha > 0 and bool(seen.any()):
            values = self.delta_entropy.double()
            mean = values[seen].mean().clamp_min(1e-12)
            values = torch.where(seen, values, values[seen].max())
            weights = (values / mean + self.delta) ** self.alpha
            if not 0 < float(weights.min()) <= float(weights.max()) < 1e300:
                weights = self._powers_of_the_highest(values / mean + self.delta)
        return self.uniform_share * self._normalized(uniform) + (
            1 - self.uniform_share
        ) * self._normalized(weights)

    def _powers_of_the_highest(self, base: Tensor) -> Tensor:
        """The weights relative to the stratum's highest, where they themselves leave float64."""
        highest = torch.zeros(len(self.shares), dtype=torch.float64, device="cpu")
        highest.scatter_reduce_(0, self.strata, base, "amax", include_self=True)
        return (base / highest[self.strata]) ** self.alpha

    def _normalized(self, weights: Tensor) -> Tensor:
        totals = torch.zeros(len(self.shares), dtype=torch.float64, device="cpu")
        return weights / totals.index_add(0, self.strata, weights)[self.strata]

    def draw(self) -> Tensor:
        """Draw the next batch: `batch_size` different dataset rows, shape (batch_size,).

        Strata get their shares by systematic sampling, which follows the shares as closely as
        whole prompts can. Inside a stratum, Gumbel noise on the log probabilities and the largest
        scores draw without replacement (Kool et al., arXiv 1903.06059), unseen prompts first.
        """
        key = torch.tensor([[self.batches_drawn]], device="cpu")
        uniform = self.noise.uniform("prompts", key, (len(self.strata) + 1,))[0].double()
        uniform = uniform.clamp(1e-12, 1 - 1e-9)
        ends = (self.shares.cumsum(0) * self.batch_size).round(decimals=6)
        ends[-1] = self.batch_size
        below = (ends - uniform[-1]).floor().long() + 1  # of the points 0 + u, 1 + u, 2 + u, ...
        counts = below.diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu"))
        score = self.probabilities().log() - torch.log(-torch.log(uniform[:-1]))
        if self.alpha > 0:
            score = score + 1e6 * torch.isnan(self.delta_entropy)
        self.batches_drawn += 1
        rows = []
        for stratum, count in enumerate(counts.tolist()):
            members = (self.strata == stratum).nonzero().flatten()
            rows.append(members[score[members].topk(count).indices])
        return torch.cat(rows)

    def __iter__(self) -> Iterator[int]:
        """Yield one epoch of dataset rows, a batch at a time."""
        for _ in range(self.num_batches):
            yield from self.draw().tolist()

    def __len__(self) -> int:
        """Return the prompts drawn in one epoch."""
        return self.num_batches * self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to draw the same next batch."""
        return {"batches_drawn": self.batches_drawn, "delta_entropy": self.delta_entropy.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If the state belongs to another number of prompts.
        """
        if len(state["delta_entropy"]) != len(self.strata):
            raise ValueError(
                f"the checkpoint's sampler knows {len(state['delta_entropy'])} prompts, but the "
                f"prompt file has {len(self.strata)}; resume with the file it was trained on"
            )
        self.batches_drawn = int(state["batches_drawn"])
        self.delta_entropy = state["delta_entropy"].clone()


class EveryRankSampler(DistributedSampler[Any]):
    """Every rank sees every row in order; a `DistributedSampler` so that Lightning keeps it.

    Lightning's own replacement pads the last batch with repeated rows, which would count twice in
    an evaluation.

    Args:
        dataset: The rows.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
