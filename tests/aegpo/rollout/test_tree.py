"""Backup by hand on small trees, and against a slow walk on random ones."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from aegpo.rollout import RolloutTree
from aegpo.rollout.tree import Transitions


def transitions(count: int) -> Transitions:
    numbers = torch.arange(count)
    latents = numbers.float().reshape(-1, 1, 1, 1)
    return Transitions(latents, latents + 1, latents + 2, numbers, numbers.float(), numbers % 2)


def tree(parent: list[int], leaf_edge: list[int]) -> RolloutTree:
    leaves = len(leaf_edge)
    return RolloutTree(
        images=None,
        latents=torch.zeros(leaves, 1, 1, 1),
        row=torch.zeros(leaves, dtype=torch.int64),
        transitions=transitions(len(parent)),
        parent=torch.tensor(parent, dtype=torch.int64),
        leaf_edge=torch.tensor(leaf_edge, dtype=torch.int64),
        sigmas=torch.tensor([1.0, 0.0]),
        num_nodes=0,
    )


# Edges 0 and 1 leave the root; 0 has the children 2 and 3, 1 has 4, 5 and 6; 6 has 7. A leaf hangs
# on 2, 3, 4, 5 and 7, and another one on no edge at all.
SMALL = tree([-1, -1, 0, 0, 1, 1, 1, 6], [2, 3, 4, 5, 7, -1])


def test_backup_of_a_small_tree():
    values = torch.tensor([1.0, 3.0, 6.0, 0.0, 9.0, 100.0])
    assert SMALL.backup(values).tolist() == [2.0, 5.0, 1.0, 3.0, 6.0, 0.0, 9.0, 9.0]
    assert SMALL.depth.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]


def test_missing_leaves_are_left_out():
    values = torch.tensor([math.nan, 3.0, 6.0, 0.0, math.nan, 1.0])
    backed_up = SMALL.backup(values)
    assert backed_up[[0, 1, 3, 4, 5]].tolist() == [3.0, 3.0, 3.0, 6.0, 0.0]
    assert backed_up[[2, 6, 7]].isnan().all()


def test_backup_of_chains_is_the_identity():
    """Three rollouts of two steps each; the values come back bit for bit."""
    chains = tree([-1, -1, -1, 0, 1, 2], [3, 4, 5])
    values = torch.tensor([0.1, 1 / 3, -1e-30])
    assert torch.equal(chains.backup(values), values.repeat(2))
    assert chains.depth.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_tree_without_edges():
    bare = tree([], [-1, -1])
    assert bare.backup(torch.tensor([1.0, 2.0])).shape == (0,)
    assert bare.depth.shape == (0,)
    assert len(bare) == 2 and len(bare.transitions) == 0


def test_backup_keeps_the_type_and_checks_the_shape():
    assert SMALL.backup(torch.ones(6, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match=r"shape \(6,\), but was given shape \(5,\)"):
        SMALL.backup(torch.ones(5))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_backup_equals_a_walk_from_every_leaf(data):
    num_edges = data.draw(st.integers(1, 25))
    parent = [data.draw(st.integers(-1, edge - 1)) for edge in range(num_edges)]
    leaf_edge = data.draw(st.lists(st.integers(-1, num_edges - 1), min_size=1, max_size=12))
    number = st.one_of(st.just(math.nan), st.floats(-5, 5, width=32))
    values = [data.draw(number) for _ in leaf_edge]
    below: list[list[float]] = [[] for _ in parent]
    for edge, value in zip(leaf_edge, values, strict=True):
        while edge >= 0:
            below[edge] += [] if math.isnan(value) else [value]
            edge = parent[edge]
    expected = [sum(leaves) / len(leaves) if leaves else math.nan for leaves in below]
    got = tree(parent, leaf_edge).backup(torch.tensor(values))
    torch.testing.assert_close(got, torch.tensor(expected), equal_nan=True, rtol=1e-6, atol=1e-6)
    depth = [0] * num_edges
    for edge, above in enumerate(parent):
        depth[edge] = 0 if above < 0 else depth[above] + 1
    assert tree(parent, leaf_edge).depth.tolist() == depth


def test_transitions_are_picked_and_joined_row_by_row():
    five = transitions(5)
    picked = five.select(torch.tensor([4, 0]))
    assert len(five) == 5 and len(picked) == 2
    assert picked.step.tolist() == [4, 0] and picked.row.tolist() == [0, 0]
    assert picked.latents.flatten().tolist() == [4, 0]
    assert picked.next_latents.flatten().tolist() == [5, 1]
    assert picked.mean.flatten().tolist() == [6, 2]
    assert picked.log_prob.tolist() == [4, 0]
    assert five.select(five.row == 1).step.tolist() == [1, 3]
    assert five.select([]).step.tolist() == []
    assert Transitions.cat([picked, five]).step.tolist() == [4, 0, 0, 1, 2, 3, 4]
    assert five.to("meta").mean.device.type == "meta"
