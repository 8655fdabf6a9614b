"""Early stopping: only the images whose previews are the extremes of their group are finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from aegpo.distributed import all_reduce_rows
from aegpo.noise import KeyedNoise
from aegpo.selection.extremes import Extremes
from aegpo.selection.selection import Selection, groups
from aegpo.utilities.checks import require_positive

Score = Callable[[Tensor, Tensor], Tensor]
"""Rewards of n previews, NaN for a failed one: of latents (n, C, H, W) and rows of prompts (n,)."""


class Previews:
    """Stops rollouts at the step from which previews tell the extremes of a group.

    A preview is the image that a path is predicted to end at, x - σ v. It is decoded and rewarded,
    which costs no evaluation of the model. In every so many iterations all images are finished and
    previews of every step are rewarded beside them; their correlation inside groups, a running one
    of all ranks, says from which step on a preview may stand for the image. In the others only the
    images go on that `model.selection` (`aegpo.selection.Extremes`) chooses by the previews of that
    step. They are compared with each other, as in PODS (arXiv 2504.13818). Where no step passes the
    bound all images are finished.

    Args:
        bound: Correlation of previews and images that a step must reach, in (0, 1).
        every_n_iterations: Iterations between two in which all images are finished; the first one
            is such.
        decay: Weight of what was seen before, at the next such iteration, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, bound: float = 0.85, every_n_iterations: int = 20, decay: float = 0.5
    ) -> None:
        require_positive("Previews: every_n_iterations", every_n_iterations)
        if not 0 < bound < 1 or not 0 <= decay < 1:
            raise ValueError(
                f"Previews: bound={bound} must lie between 0 and 1, and decay={decay} be at least "
                "0 and below 1"
            )
        self.bound, self.every_n_iterations, self.decay = bound, every_n_iterations, decay
        self._moments = torch.zeros(0, 3, dtype=torch.float64, device="cpu")

    @property
    def correlation(self) -> Tensor:
        """Of each step's previews with the images, inside groups; 0 if unknown, shape (T - 1,)."""
        both, preview, image = self._moments.unbind(1)
        return (both / (preview * image).sqrt()).nan_to_num(0.0)

    def step(self) -> int | None:
        """The first step whose previews pass the bound; None if there is none."""
        passed = (self.correlation >= self.bound).nonzero().flatten()
        return int(passed[0]) if len(passed) else None

    def begin(
        self, selection: Selection, score: Score, noise: KeyedNoise, index: Tensor, num_steps: int
    ) -> PreviewedRollout:
        """What looks on at an iteration's rollout.

        Args:
            selection: Which images of a group go on, by their previews.
            score: Rewards previews.
            noise: Keyed noise of the iteration.
            index: Dataset row of each prompt of this rank, shape (B,) int64.
            num_steps: T.

        Returns:
            A stopper for that rollout.

        Raises:
            TypeError: If the selection is none of extremes.
        """
        if not isinstance(selection, Extremes):
            raise TypeError(f"previews need Extremes, not {type(selection).__name__}")
        if len(self._moments) != num_steps - 1:
            self._moments = torch.zeros(num_steps - 1, 3, dtype=torch.float64, device="cpu")
        watches = noise.iteration % self.every_n_iterations == 0 or not bool(self._moments.any())
        return PreviewedRollout(self, watches, selection, score, noise, index.cpu())

    def learn(self, moments: Tensor) -> None:
        """Take in what an iteration has shown; every rank calls it.

        Args:
            moments: Sums over this rank's images, less the means of their groups, of preview ·
                image, preview² and image², shape (T - 1, 3) float64; the previews of a step a row.
        """
        self._moments = self.decay * self._moments + all_reduce_rows(moments).cpu()

    def metrics(self) -> dict[str, float]:
        """The correlation by step, and the step at which rollouts will stop next (T - 1: never)."""
        found = self.correlation.tolist()
        stop = self.step()
        return {f"previews/correlation_{step}": value for step, value in enumerate(found)} | {
            "previews/step": float(len(found) if stop is None else stop)
        }

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far: tensors and plain values only."""
        return {"moments": self._moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint had seen.

        Args:
            state: What `state_dict` returned; empty to begin anew.
        """
        self._moments = torch.zeros(0, 3, dtype=torch.float64, device="cpu")
        if state:
            self._moments = state["moments"].double().cpu()


class PreviewedRollout:
    """One iteration's rollout under `Previews`: watched to its end, or stopped.

    Args:
        previews: What it is for.
        watches: Whether all images are finished and compared with their previews.
        selection: Which images of a group go on.
        score: Rewards previews.
        noise: Keyed noise of the iteration.
        index: Dataset row of each prompt, shape (B,) int64 on the CPU.

    Attributes:
        scored: Previews that were rewarded so far.
    """

    def __init__(
        self,
        previews: Previews,
        watches: bool,
        selection: Extremes,
        score: Score,
        noise: KeyedNoise,
        index: Tensor,
    ) -> None:
        self._previews, self.watches = previews, watches
        self._selection, self._score = selection, score
        self._noise, self._index = noise, index
        self._steps = len(previews.correlation)
        self._stop = None if watches else previews.step()
        self._seen: dict[int, Tensor] = {}
        self.scored = 0

    def due(self, step: int) -> bool:
        """Whether the previews of a step are wanted; see `aegpo.rollout.stopping.Stopper`."""
        return step < self._steps and (self.watches or step == self._stop)

    def choose(self, step: int, clean: Tensor, row: Tensor) -> Tensor | None:
        """Reward the previews; say who goes on, if it is not all; see `Stopper`."""
        rewards = self._score(clean, row).double().cpu()
        self.scored += len(rewards)
        if self.watches:
            self._seen[step] = rewards
            return None
        kept = torch.zeros(len(row), dtype=torch.bool, device="cpu")
        for key, member, known in groups(rewards, row.cpu(), self._index):
            if len(known) < self._selection.keep:  # too few are known to choose by
                kept[member] = True
                continue
            own = rewards[known]
            kept[known] = self._selection.weigh(own - own.mean(), key, self._noise) > 0
        return kept.nonzero().flatten()

    def learn(self, rewards: Tensor, row: Tensor) -> None:
        """Compare the previews with the finished images; every rank calls it.

        Args:
            rewards: Reward of each image, NaN where it failed, shape (N,).
            row: Row of each one's prompt, shape (N,) int64.
        """
        if not self.watches:
            return
        moments = torch.zeros(self._steps, 3, dtype=torch.float64, device="cpu")
        final, rows = rewards.detach().double().cpu(), row.cpu()
        for step, seen in self._seen.items():
            known = (seen.isfinite() & final.isfinite()).double()
            groups = torch.nn.functional.one_hot(rows, len(self._index)).double() * known[:, None]
            pair = torch.stack([seen, final], dim=1).nan_to_num(0.0)
            mean = groups.t() @ pair / groups.sum(0)[:, None].clamp(min=1)
            preview, image = ((pair - groups @ mean) * known[:, None]).unbind(1)
            moments[step] = torch.stack(
                [(preview * image).sum(), preview.square().sum(), image.square().sum()]
            )
        self._previews.learn(moments)
