"""Splits at chosen steps: the noise around them, and BranchGRPO's counts."""

from __future__ import annotations

import pytest
import torch
from chosen_steps import NOISE, sizes
from toy_policy import ToyPolicy

from aegpo.exploration import FixedSplits
from aegpo.rollout import rollout
from aegpo.sde import DanceSDE


class TestFixedSplits:
    def test_noise_everywhere_or_only_where_asked(self) -> None:
        index = torch.arange(1)
        everywhere = FixedSplits([0, 2], eta=0.5)(None, NOISE, index, 5)
        assert everywhere.eta.tolist() == [[0.5, 0.5, 0.5, 0.5, 0.0]]
        assert everywhere.branching.tolist() == [[2, 1, 2, 1, 1]]
        hybrid = FixedSplits([2, 0], factors=[3, 2], explore=[1], eta=0.5)(None, NOISE, index, 5)
        assert hybrid.eta.tolist() == [[0.5, 0.5, 0.5, 0.0, 0.0]]
        assert hybrid.branching.tolist() == [[2, 1, 3, 1, 1]]
        only = FixedSplits([2], explore=[], eta=0.5)(None, NOISE, index, 5)
        assert only.eta.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.0]]

    @pytest.mark.parametrize(
        ("explore", "edges", "nodes"),
        # Noise at steps 0-18 (the last one never explores): 218 - 16 edges. BranchGRPO-Mix with
        # its window on steps 0-3: 2 + 2 + 2 + 4 + 8 + 16 edges on the same nodes.
        [(None, 218 - 16, 203), ([0, 1, 2, 3], 34, 203), ([], 2 + 4 + 8 + 16, 203)],
    )
    def test_branchgrpo_counts(self, explore: list | None, edges: int, nodes: int) -> None:
        plan = FixedSplits([0, 3, 6, 9], explore=explore, eta=0.3)(
            None, NOISE, torch.tensor([7]), 20
        ).fit(sizes(16))
        policy = ToyPolicy()
        tree = rollout(
            policy, DanceSDE(), policy.encode([0.1]), plan, sizes(16), NOISE, torch.tensor([7])
        )
        assert (len(tree.transitions), tree.num_nodes) == (edges, nodes)

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: FixedSplits([]), "one or more different"),
            (lambda: FixedSplits([1, 1]), "one or more different"),
            (lambda: FixedSplits([0, 1], factors=[2]), "one factor of at least 2 each"),
            (lambda: FixedSplits([0], branching=1), "one factor of at least 2 each"),
            (lambda: FixedSplits([0], explore=[-1]), "from 0 up"),
            (lambda: FixedSplits([4]).validate(5), "splits=.* reaches beyond step 3"),
            (lambda: FixedSplits([0], explore=[4]).validate(5), "explore=.* reaches beyond step 3"),
        ],
    )
    def test_refuses(self, build, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build()
