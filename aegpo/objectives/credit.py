"""Credit: how the rewards of the leaves become the advantage of every transition of a tree."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from aegpo.advantages import GroupRelative
from aegpo.distributed import all_gather_rows, world
from aegpo.rollout import RolloutTree


class Credit(abc.ABC):
    """Gives every transition of a tree its advantage."""

    compares_rewards: bool = False
    """Whether it compares rewards itself, instead of handing down the images' advantages."""

    @abc.abstractmethod
    def __call__(
        self, tree: RolloutTree, rewards: Tensor, advantages: Tensor, normalize: GroupRelative
    ) -> Tensor:
        """Hand rewards down from the leaves.

        Args:
            tree: The rollout of this rank's prompts.
            rewards: Reward of each image, NaN where it is missing, shape (N,).
            advantages: Advantage of each image within its group, NaN where it is missing,
                shape (N,).
            normalize: What compared the images with their group.

        Returns:
            Advantage of each transition, shape (E,); NaN where all leaves below are missing.
        """


class LeafCredit(Credit):
    """A transition's advantage is the mean advantage of the images below it.

    Images are compared with all others of their prompt, wherever they parted, as in TreeGRPO
    (arXiv 2512.08153). On chains it is plain GRPO.
    """

    def __call__(
        self, tree: RolloutTree, rewards: Tensor, advantages: Tensor, normalize: GroupRelative
    ) -> Tensor:
        """The mean over the leaves below; see `Credit.__call__`."""
        return tree.backup(advantages)


class DepthCredit(Credit):
    """A transition is compared with the others of its prompt at the same step, as in BranchGRPO.

    BranchGRPO (arXiv 2509.06040): the rewards of the leaves are fused into a value of every node,
    and the values are normalized per prompt and depth. Where a depth has two nodes the advantage
    is ±0.71 however far they are apart, and a single node has none. On chains it is plain GRPO.

    Args:
        beta: How the leaves below a node are weighted, by softmax of beta times the log-prob of the
            way from the node to the leaf: 0 takes their mean, the paper takes 1. Log-probs are
            means over the latent's dimensions and thus close to each other, so that 1 is nearly
            the mean too.

    Raises:
        ValueError: If `beta` is not a finite number.
    """

    compares_rewards = True

    def __init__(self, beta: float = 0.0) -> None:
        if not math.isfinite(beta):
            raise ValueError(f"beta={beta} must be a finite number; 0 takes the mean")
        self.beta = beta

    def __call__(
        self, tree: RolloutTree, rewards: Tensor, advantages: Tensor, normalize: GroupRelative
    ) -> Tensor:
        """Fuse, then normalize per prompt and step; see `Credit.__call__`."""
        values = fuse(tree, rewards, self.beta)
        size, rank = world()
        # All paths of a prompt are stochastic at the same steps: equal step is equal depth. Ranks
        # are told apart because `normalize` may look at all of them together.
        depths = tree.transitions.row * len(tree.sigmas) + tree.transitions.step
        all_values, own = all_gather_rows(values)
        all_depths, _ = all_gather_rows(depths * size + rank)
        normalized = normalize(all_values, all_depths).values[own]
        return normalized.masked_fill(values.isnan(), math.nan)


def fuse(tree: RolloutTree, values: Tensor, beta: float = 0.0) -> Tensor:
    """The value of the node that each transition leads to, from the leaves below it.

    The leaves are weighted by softmax(beta log p(leaf | node)), where log p is the sum of the
    log-probs of the transitions from the node to the leaf (BranchGRPO, arXiv 2509.06040).

    Args:
        tree: The rollout.
        values: One value per image; NaN means missing and is left out, shape (N,).
        beta: Sharpness of the weights; 0 is `RolloutTree.backup`.

    Returns:
        Value of each transition's end, shape (E,); NaN where all leaves below are missing.
    """
    if beta == 0:
        return tree.backup(values)
    present = ~values.isnan()
    edge, value = tree.leaf_edge[present], values[present].double()
    score = torch.zeros_like(value)
    edges, leaves, scores = [edge[:0]], [value[:0]], [score[:0]]
    while bool((edge >= 0).any()):  # all leaves climb together, one edge a turn
        on_tree = edge >= 0
        edge, value, score = edge[on_tree], value[on_tree], score[on_tree]
        edges, leaves, scores = [*edges, edge], [*leaves, value], [*scores, score]
        score = score + beta * tree.transitions.log_prob[edge].double()
        edge = tree.parent[edge]
    edge, value, score = torch.cat(edges), torch.cat(leaves), torch.cat(scores)
    zeros = value.new_zeros(len(tree.parent))
    highest = zeros.scatter_reduce(0, edge, score, "amax", include_self=False)
    weight = (score - highest[edge]).exp()
    total = zeros.index_add(0, edge, weight)
    return (zeros.index_add(0, edge, weight * value) / total).to(values.dtype)
