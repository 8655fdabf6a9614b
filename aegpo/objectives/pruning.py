"""Pruning: which transitions an update leaves out; rollouts and advantages stay as they are."""

from __future__ import annotations

import abc
from typing import Literal

import torch
from torch import Tensor

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.rollout import RolloutTree


class Pruning(abc.ABC):
    """Chooses the transitions that are trained on."""

    def __call__(
        self,
        tree: RolloutTree,
        schedule: ExplorationSchedule,
        advantages: Tensor,
        noise: KeyedNoise,
        index: Tensor,
    ) -> Tensor:
        """Choose among the transitions of a rollout.

        Args:
            tree: The rollout of B prompts.
            schedule: Its exploration schedule, B rows.
            advantages: Advantage of each transition, shape (E,).
            noise: Keyed noise of this iteration.
            index: Dataset row of each prompt, shape (B,) int64.

        Returns:
            True where a transition is trained on, bool, shape (E,), where the advantages are.
        """
        kept = torch.ones(len(tree.transitions), dtype=torch.bool, device=advantages.device)
        self.cut(kept, tree, schedule, advantages, noise, index)
        return kept

    @abc.abstractmethod
    def cut(
        self,
        kept: Tensor,
        tree: RolloutTree,
        schedule: ExplorationSchedule,
        advantages: Tensor,
        noise: KeyedNoise,
        index: Tensor,
    ) -> None:
        """Say which transitions are left out; this is all that a pruning has to do.

        Args:
            kept: All True, bool, shape (E,); to be set to False where a transition is left out.
            tree: The rollout of B prompts.
            schedule: Its exploration schedule, B rows.
            advantages: Advantage of each transition, shape (E,).
            noise: Keyed noise of this iteration.
            index: Dataset row of each prompt, shape (B,) int64.
        """

    def validate(self, num_steps: int) -> None:
        """Check that the choice is possible, before any model is loaded.

        Args:
            num_steps: T, the number of denoising steps.

        Raises:
            ValueError: If it leaves out what does not exist.
        """
        del num_steps


class WidthPruning(Pruning):
    """Below the last split only some of the branches are trained on, as in BranchGRPO.

    BranchGRPO (arXiv 2509.06040) keeps half of them. Nothing is cut from chains.

    Args:
        mode: "parent_top" keeps the best children of each node of the last split, "extremes" the
            best and the worst leaves of the prompt, half of each.
        keep: Share of the branches that is kept, above 0 and at most 1; at least one of a node's
            children and two leaves of a prompt stay.

    Raises:
        ValueError: If `mode` is unknown or `keep` is out of range.
    """

    def __init__(
        self, mode: Literal["parent_top", "extremes"] = "parent_top", keep: float = 0.5
    ) -> None:
        if mode not in ("parent_top", "extremes"):
            raise ValueError(f"mode={mode!r} is unknown; use 'parent_top' or 'extremes'")
        _require_share(keep)
        self.mode = mode
        self.keep = keep

    def cut(
        self,
        kept: Tensor,
        tree: RolloutTree,
        schedule: ExplorationSchedule,
        advantages: Tensor,
        noise: KeyedNoise,
        index: Tensor,
    ) -> None:
        """Cut the branches below the last split; see `Pruning.cut`."""
        rows, leaf_edge = tree.row.cpu(), tree.leaf_edge.cpu()
        worth = advantages.cpu()[leaf_edge]
        leaves_kept = torch.ones(len(tree), dtype=torch.bool, device="cpu")
        last_split = torch.full((schedule.num_prompts,), schedule.num_steps, device="cpu")
        for row, branching in enumerate(schedule.branching.cpu()):
            if bool((branching == 1).all()):
                continue
            last_split[row] = branching.gt(1).nonzero().amax()
            leaves = (rows == row).nonzero().flatten()
            # After the last split nothing parts, so the children of one node are neighbors.
            children = int(branching[last_split[row]])
            width = children if self.mode == "parent_top" else len(leaves)
            for family in leaves.reshape(-1, width):
                order = family[worth[family].argsort(descending=True, stable=True)]
                leaves_kept[order[self._beyond(len(order))]] = False
        below = tree.transitions.step.cpu() > last_split[tree.transitions.row.cpu()]
        leads_to_kept = tree.backup(leaves_kept.float().to(tree.row.device)).cpu() > 0
        kept &= (~below | leads_to_kept).to(kept.device)

    def _beyond(self, count: int) -> slice:
        """The ranks that are cut, of `count` in descending order."""
        if self.mode == "parent_top":
            return slice(max(1, round(self.keep * count)), count)
        each_end = max(1, round(self.keep * count / 2))
        return slice(each_end, max(each_end, count - each_end))


class DepthPruning(Pruning):
    """Some consecutive steps are not trained on; which ones moves as training goes on.

    BranchGRPO (arXiv 2509.06040) leaves out 4 steps and moves on every 30 iterations. Its paper
    does not settle the direction; its public code moves towards noise, as is done here.

    Args:
        start: First step that is left out at the beginning.
        width: Consecutive steps that are left out.
        interval: Iterations between two moves by one step.
        stop: First step that is left out in the end; at most `start`.

    Raises:
        ValueError: If `width` or `interval` is below 1, or `stop` is not in 0 to `start`.
    """

    def __init__(self, start: int, width: int = 4, interval: int = 30, stop: int = 0) -> None:
        if width < 1 or interval < 1:
            raise ValueError(f"width={width} and interval={interval} must both be at least 1")
        if not 0 <= stop <= start:
            raise ValueError(f"stop={stop} must lie between 0 and start={start}")
        self.start, self.width, self.interval, self.stop = start, width, interval, stop

    def cut(
        self,
        kept: Tensor,
        tree: RolloutTree,
        schedule: ExplorationSchedule,
        advantages: Tensor,
        noise: KeyedNoise,
        index: Tensor,
    ) -> None:
        """Leave out this iteration's steps; see `Pruning.cut`."""
        first = max(self.start - max(noise.iteration, 0) // self.interval, self.stop)
        step = tree.transitions.step
        kept &= (step < first) | (step >= first + self.width)

    def validate(self, num_steps: int) -> None:
        """Check that the steps exist; see `Pruning.validate`."""
        if self.start + self.width > num_steps - 1:
            raise ValueError(
                f"start={self.start} and width={self.width} reach beyond step {num_steps - 2}, the "
                f"last that can explore when num_steps={num_steps}; lower one of them"
            )


class RandomStepPruning(Pruning):
    """Only some of the stochastic steps are trained on, drawn anew per prompt and iteration.

    DanceGRPO (arXiv 2505.07818) draws noise at all steps and trains on 60 % of them.

    Args:
        keep: Share of a prompt's stochastic steps that is trained on, above 0 and at most 1;
            rounded to whole steps, at least one.

    Raises:
        ValueError: If `keep` is out of range.
    """

    def __init__(self, keep: float = 0.6) -> None:
        _require_share(keep)
        self.keep = keep

    def cut(
        self,
        kept: Tensor,
        tree: RolloutTree,
        schedule: ExplorationSchedule,
        advantages: Tensor,
        noise: KeyedNoise,
        index: Tensor,
    ) -> None:
        """Keep the steps that were drawn; see `Pruning.cut`."""
        trained = torch.zeros(schedule.eta.shape, dtype=torch.bool, device="cpu")
        for row, key in enumerate(index.tolist()):
            steps = schedule.stochastic[row].cpu().nonzero().flatten()
            order = noise.permutation("trained steps", (key,), len(steps))
            trained[row, steps[order[: max(1, round(self.keep * len(steps)))]]] = True
        kept &= trained.to(kept.device)[tree.transitions.row, tree.transitions.step]


def _require_share(keep: float) -> None:
    """Raise unless some of the transitions are kept."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie above 0 and at most at 1")
