"""The choice of the images that an iteration is trained on, between advantages and objective."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import torch
from torch import Tensor

from aegpo.noise import KeyedNoise


class Selection(abc.ABC):
    """Chooses which of a group's images are trained on, and how much each of them counts.

    More images are drawn and rewarded than are trained on: a drawn one costs a rollout, a trained
    one several evaluations more. Nothing before it changes. Advantages compare every image with
    **all** of its group, as they were before the choice, unless a selection says otherwise. A
    choice is made inside a group and keyed by the prompt, so it does not depend on which rank draws
    the prompt.

    Args:
        skip_silent: Leave out groups without signal, whose advantages are all 0: they have no
            gradient but that of a KL, or of an objective that also pulls back to its old policy.
    """

    selects: bool = True
    """Whether it may leave an image out."""

    unbiased: bool = False
    """Whether weights make up for what is left out, which needs images that share no transition."""

    def __init__(self, skip_silent: bool = False) -> None:
        self.skip_silent = skip_silent

    def __call__(
        self, advantages: Tensor, row: Tensor, index: Tensor, noise: KeyedNoise
    ) -> Tensor | None:
        """Choose among the images of this rank's prompts; every rank calls it.

        Args:
            advantages: Advantage of each image within its whole group, NaN where its reward failed,
                shape (N,).
            row: Row of each image's prompt, shape (N,) int64.
            index: Dataset row of each prompt, shape (B,) int64.
            noise: Keyed noise of the iteration.

        Returns:
            Weight of each image in the loss, fp32 where the advantages are, shape (N,): 0 where it
            is left out, as every image is whose reward failed. None if all are trained on alike.
        """
        values = advantages.detach().double().cpu()
        weights = torch.zeros_like(values)
        for key, _, known in groups(values, row.cpu(), index):
            own = values[known]
            if len(own) > 0 and not (self.skip_silent and bool((own == 0).all())):
                weights[known] = self.weigh(own, key, noise)
        return weights.to(advantages)

    def trained_on(self, advantages: Tensor, weights: Tensor | None, row: Tensor) -> Tensor:
        """The advantages that an objective learns from.

        Weights act through the advantage, in which the first gradient of every objective is linear.

        Args:
            advantages: Advantage of each image, NaN where its reward failed, shape (N,).
            weights: What the call returned for them, shape (N,); None for all alike.
            row: Row of each image's prompt, shape (N,) int64.

        Returns:
            Weighted, NaN where an image is not trained on, shape (N,).
        """
        if weights is None:
            return advantages
        chosen = advantages - self.baseline_of(advantages, weights, row)
        return torch.where(weights > 0, chosen * weights, torch.nan)

    def baseline_of(self, advantages: Tensor, weights: Tensor, row: Tensor) -> Tensor | float:
        """What is taken off the advantages of the chosen: nothing, they stay what they were."""
        del advantages, weights, row
        return 0.0

    @abc.abstractmethod
    def weigh(self, advantages: Tensor, key: int, noise: KeyedNoise) -> Tensor:
        """Choose among the images of one group; this is all that a selection has to do.

        Args:
            advantages: Their advantages, finite, float64 on the CPU, shape (n,) with n at least 1.
            key: Dataset row of the prompt, by which draws are named.
            noise: Keyed noise of the iteration.

        Returns:
            Weight of each image, at least 0, shape (n,).
        """


class AllImages(Selection):
    """Every image whose reward is known is trained on.

    Args:
        skip_silent: Leave out groups without signal, whose advantages are all 0, as public trainers
            of the policy gradient do.
    """

    def __init__(self, skip_silent: bool = False) -> None:
        super().__init__(skip_silent)
        self.selects = skip_silent

    def __repr__(self) -> str:
        return "AllImages()"

    def __call__(
        self, advantages: Tensor, row: Tensor, index: Tensor, noise: KeyedNoise
    ) -> Tensor | None:
        """No choice at all unless silent groups are left out; see `Selection.__call__`."""
        return super().__call__(advantages, row, index, noise) if self.selects else None

    def weigh(self, advantages: Tensor, key: int, noise: KeyedNoise) -> Tensor:
        """Every image alike; see `Selection.weigh`."""
        return torch.ones_like(advantages)


def groups(values: Tensor, row: Tensor, index: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Walk over the groups of a rollout.

    Args:
        values: A number of each image, NaN where it failed, shape (N,).
        row: Row of each image's prompt, shape (N,) int64 on the same device.
        index: Dataset row of each prompt, shape (B,) int64.

    Yields:
        Of each prompt its dataset row, the numbers of its images, and of those that are known.
    """
    for number, key in enumerate(index.tolist()):
        member = (row == number).nonzero().flatten()
        yield key, member, member[values[member].isfinite()]
