"""Scores of a rollout's images, if asked for beside the drawing of the next ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from aegpo.distributed import all_reduce_sum
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout import RolloutTree

MOST_BAD_ITERATIONS = 3
"""Bad iterations in a row at which a run stops."""


def limit_time(rewards: Sequence[Reward], seconds: float | None) -> None:
    """Let no call of some rewards take longer than a time.

    Args:
        rewards: The rewards.
        seconds: Seconds per image, above 0; None leaves each with its own limit, if it has one.

    Raises:
        ValueError: If it is not above 0.
    """
    if seconds is None:
        return
    if not seconds > 0:
        raise ValueError(
            f"model.reward_time_limit={seconds} must be above 0 seconds per image, or null for none"
        )
    for reward in rewards:
        reward.time_limit = seconds


class Drawn(NamedTuple):
    """A rollout and its scores to come.

    Attributes:
        tree: The rollout.
        scores: Makes the scores of its images, or waits for them; to be called once.
    """

    tree: RolloutTree
    scores: Callable[[], Scores]


class Scoring:
    """Scores images after the rollout, or chunk by chunk while the next chunk is drawn.

    In chunks the update still waits for all scores, so the training stays on-policy: what overlaps
    is the reward of one chunk of prompts and the rollout of the next. That pays where a reward
    waits (for a server, the processor, another device), not where it competes for the same device.

    Args:
        reward: The reward; called from one thread at a time, chunks in order.
        chunks: Into how many parts the prompts of this process are divided; 1 for no overlap.
        max_missing: Share of failed rewards above which an iteration is bad.

    Raises:
        ValueError: If `chunks` is below 1.
    """

    def __init__(self, reward: Reward, chunks: int = 1, max_missing: float = 0.5) -> None:
        if chunks < 1:
            raise ValueError(f"model.overlap_chunks={chunks} must be at least 1")
        self.reward = reward
        self.chunks = chunks
        self.max_missing = max_missing
        self.bad_iterations = 0
        self.has_worked = False

    def draw_and_score(self, draw: Callable[[Tensor], RolloutTree], batch: PromptBatch) -> Drawn:
        """Draw all prompts; with several chunks also start to score them.

        Args:
            draw: Draws the given rows of the batch, (n,) int64.
            batch: The prompts of this process.

        Returns:
            The tree of all prompts, and its scores.
        """
        rows = torch.arange(len(batch), device="cpu")
        if self.chunks == 1:
            tree = draw(rows)
            return Drawn(tree, lambda: self._score(tree, batch))
        trees: list[RolloutTree] = []
        jobs: list[Future[Scores]] = []
        chunks = rows.tensor_split(max(1, min(self.chunks, len(rows))))
        # Leaving the pool waits for the last chunk's scores.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward") as pool:
            for chunk in chunks:
                trees.append(draw(chunk))
                jobs.append(pool.submit(self._score, trees[-1], batch.select(chunk)))
        tree = RolloutTree.cat(trees, [len(chunk) for chunk in chunks])
        return Drawn(tree, lambda: Scores.cat([job.result() for job in jobs]))

    @torch.no_grad()
    def _score(self, tree: RolloutTree, batch: PromptBatch) -> Scores:
        images = batch.repeat(tree.row)
        return guarded_scores(self.reward, tree.images, images.prompts, images.metadata)

    def require_one_chunk(self) -> None:
        """Raise where a rollout that is watched as one would be drawn in parts."""
        if self.chunks > 1:
            raise ValueError(
                f"model.overlap_chunks={self.chunks} draws in parts, which cannot be recorded as "
                "one; set it to 1, or read entropy from its own trajectories"
            )

    def require_enough(self, rewards: Tensor, iteration: int) -> None:
        """Raise if a reward keeps failing; an iteration or two without it are survived.

        An iteration is bad if more than `max_missing` of all ranks' rewards are missing. The run
        stops at the third bad one in a row, and at the first if no image was ever scored.

        Args:
            rewards: Reward of each image of this rank, NaN where it failed, shape (N,).
            iteration: The training iteration, for the message.

        Raises:
            RuntimeError: If that is so, on every rank.
        """
        missing = all_reduce_sum(float(rewards.isnan().sum()), rewards.device)
        total = all_reduce_sum(float(len(rewards)), rewards.device)
        self.has_worked = self.has_worked or missing < total
        self.bad_iterations = self.bad_iterations + 1 if missing > self.max_missing * total else 0
        most = MOST_BAD_ITERATIONS if self.has_worked else 1
        if self.bad_iterations >= most:
            raise RuntimeError(
                f"reward {self.reward.name!r} failed on {missing:.0f} of {total:.0f} images of "
                f"iteration {iteration}, more than max_missing={self.max_missing}"
                f"{f' for the {most}rd time in a row' if most > 1 else ''}; the warnings above say "
                "why"
            )
