"""Scores of a rollout's images, if asked for beside the drawing of the next ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout import RolloutTree

Parts = dict[str, Tensor]


class Scoring:
    """Scores images after the rollout, or chunk by chunk while the next chunk is drawn.

    In chunks the update still waits for all scores, so the training stays on-policy: what overlaps
    is the reward of one chunk of prompts and the rollout of the next. That pays where a reward
    waits (for a server, the processor, another device), not where it competes for the same device.

    Args:
        reward: The reward; called from one thread at a time, chunks in order.
        chunks: Into how many parts the prompts of this process are divided; 1 for no overlap.

    Raises:
        ValueError: If `chunks` is below 1.
    """

    def __init__(self, reward: Reward, chunks: int = 1) -> None:
        if chunks < 1:
            raise ValueError(f"model.overlap_chunks={chunks} must be at least 1")
        self.reward = reward
        self.chunks = chunks
        self._jobs: list[Future[tuple[Tensor, Parts]]] = []

    def draw(self, rollout: Callable[[Tensor], RolloutTree], batch: PromptBatch) -> RolloutTree:
        """Draw all prompts; with several chunks also start to score them.

        Args:
            rollout: Draws the given rows of the batch, (n,) int64.
            batch: The prompts of this process.

        Returns:
            The tree of all prompts.
        """
        rows = torch.arange(len(batch))
        if self.chunks == 1:
            return rollout(rows)
        trees: list[RolloutTree] = []
        chunks = rows.tensor_split(min(self.chunks, len(rows)))
        # Leaving the pool waits for the last chunk's scores.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward") as pool:
            self._jobs = []
            for chunk in chunks:
                trees.append(rollout(chunk))
                self._jobs.append(pool.submit(self._score, trees[-1], batch.select(chunk)))
        return RolloutTree.cat(trees, [len(chunk) for chunk in chunks])

    def scores(self, tree: RolloutTree, batch: PromptBatch) -> Tensor:
        """Score the images that `draw` returned, or collect the scores that it started.

        Args:
            tree: What `draw` returned.
            batch: The prompts of this process.

        Returns:
            Reward of each image, NaN where it failed, shape (N,). The reward's `parts` are those of
            all images.
        """
        if self.chunks == 1:
            return self._guarded(tree, batch)
        results = [job.result() for job in self._jobs]
        self._jobs = []
        self.reward.parts = _joined([parts for _, parts in results])
        return torch.cat([scores for scores, _ in results])

    def part_scores(self, rewards: Tensor) -> Tensor:
        """The parts that count, beside the rewards they add up to.

        Args:
            rewards: What `scores` returned.

        Returns:
            Scores of the P parts in the order of the reward's `part_weights`, shape (N, P); NaN
            where the latest call left none.
        """
        missing = torch.full_like(rewards, float("nan"))
        parts = [self.reward.parts.get(name, missing) for name in self.reward.part_weights]
        columns = [part if part.shape == rewards.shape else missing for part in parts]
        return torch.stack(columns, dim=1) if columns else rewards.new_empty(len(rewards), 0)

    def _guarded(self, tree: RolloutTree, batch: PromptBatch) -> Tensor:
        images = batch.repeat(tree.row)
        return guarded_scores(self.reward, tree.images, images.prompts, images.metadata)

    @torch.no_grad()
    def _score(self, tree: RolloutTree, batch: PromptBatch) -> tuple[Tensor, Parts]:
        scores = self._guarded(tree, batch)
        current = {k: part for k, part in self.reward.parts.items() if len(part) == len(scores)}
        return scores, current


def _joined(parts: list[Parts]) -> Mapping[str, Tensor]:
    """The parts of all chunks one after another; a chunk that failed may have none."""
    names = set.intersection(*(set(one) for one in parts))
    return {name: torch.cat([one[name] for one in parts]) for name in parts[0] if name in names}
