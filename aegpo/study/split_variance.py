"""What trees tell about their steps for nothing: the variance between siblings."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.rollout import RolloutTree
from aegpo.study.step_variance import VarianceTerms


def split_variance(tree: RolloutTree, rewards: Tensor, num_prompts: int) -> VarianceTerms:
    """The reward variance that the noise of each split step explains, without bias.

    The children of a node differ by the noise of the split and by what happens below them. A
    child's value is the mean of its own children's values, a leaf's its reward; the variance of
    the children's values, with n - 1, is the split's variance plus the error of these means. That
    error is known without bias: a child that splits into b itself has the variance between its b
    children, over b. It is subtracted, as in a nested analysis of variance, so the estimate can be
    negative. No formula of a paper: BranchGRPO (arXiv 2509.06040) uses such node values for credit.

    What is left is the variance of the split's noise *and* of the noisy steps between it and the
    next split, or the end: these have no siblings to be told apart by. On trees that are
    deterministic between their splits it is the split's noise alone. It is taken with the noise of
    the tree's other steps in place and averaged over them. Siblings are taken to be independent;
    with correlated split noise (`split_scale` of the rollout) the shared part, 1 / (1 + s²) at a
    linear reward, goes to the split above.

    Args:
        tree: The rollout of B prompts.
        rewards: Reward of each image, NaN where it is missing, shape (N,). A split of which fewer
            than two children are left, or one whose error is not known, is left out.
        num_prompts: B.

    Returns:
        The terms of B prompts and T steps on the CPU; no freedom where a step did not split.
    """
    step, row = tree.transitions.step.cpu(), tree.transitions.row.cpu()
    parent, leaf_edge = tree.parent.cpu(), tree.leaf_edge.cpu()
    node = _source_nodes(tree)
    num_edges, num_nodes = len(node), int(node.max()) + 1 if len(node) > 0 else 0
    num_steps = len(tree.sigmas) - 1
    squares = torch.zeros(num_prompts, num_steps, dtype=torch.float64, device="cpu")
    freedom = torch.zeros_like(squares)

    width = torch.bincount(node, minlength=num_nodes)
    # The value of each edge's end and the variance of its error; leaves are exact.
    value = torch.full((num_edges,), float("nan"), dtype=torch.float64, device="cpu")
    error = torch.zeros_like(value)
    on_tree = leaf_edge >= 0
    value[leaf_edge[on_tree]] = rewards.cpu().double()[on_tree]
    for level in range(num_steps - 1, -1, -1):
        edges = ((step == level) & ~value.isnan()).nonzero().flatten()
        below, own = node[edges], value[edges]
        zeros = torch.zeros(num_nodes, dtype=torch.float64, device="cpu")
        count = zeros.index_add(0, below, torch.ones_like(own))
        mean = zeros.index_add(0, below, own) / count
        deviations = zeros.index_add(0, below, (own - mean[below]).square())
        child_error = zeros.index_add(0, below, error[edges]) / count
        between = deviations / (count - 1)  # infinite or NaN where one child is left
        first = _first_of_each(node, step == level)
        told = first[(count >= 2)[node[first]] & ~child_error[node[first]].isnan()]
        at = row[told], torch.full_like(told, level)
        weight = count[node[told]] - 1
        squares.index_put_(at, weight * (between - child_error)[node[told]], accumulate=True)
        freedom.index_put_(at, weight, accumulate=True)
        # Upwards. A noisy step without a split hands on what it got; a split that lost all but one
        # of its children has a value, but nobody knows how good it is.
        node_error = torch.where(width == 1, child_error, between / count)
        node_error[(width > 1) & (count < 2)] = float("nan")
        above = parent[first]
        inner = above >= 0
        value[above[inner]] = mean[node[first[inner]]]
        error[above[inner]] = node_error[node[first[inner]]]
    return VarianceTerms(squares, freedom)


def _source_nodes(tree: RolloutTree) -> Tensor:
    """Number of the node that each edge leaves, (E,); siblings lie side by side."""
    edges, parent = tree.transitions, tree.parent
    if len(parent) == 0:
        return parent.cpu()
    # Edges without a parent leave different roots or, with a shared start, the same one.
    same = (parent[1:] == parent[:-1]) & (edges.step[1:] == edges.step[:-1])
    same &= edges.row[1:] == edges.row[:-1]
    same &= (edges.latents[1:] == edges.latents[:-1]).flatten(1).all(dim=1)
    return torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), (~same).cpu().cumsum(0)])


def _first_of_each(node: Tensor, mask: Tensor) -> Tensor:
    """The first edge of every node among the marked ones."""
    edges = mask.nonzero().flatten()
    new = torch.ones_like(edges, dtype=torch.bool)
    new[1:] = node[edges[1:]] != node[edges[:-1]]
    return edges[new]
