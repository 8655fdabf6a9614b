"""RolloutTree: what a rollout leaves behind, in flat tensors.

Nodes are latents, edges are transitions from one denoising step to the next. Only stochastic edges
are stored: a deterministic one has no log-prob and nothing to learn. A chain is a tree that never
branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Transitions:
    """The stochastic edges of a rollout, one row each; what an update trains on.

    Attributes:
        latents: (E, C, H, W) fp32, the state that the policy saw.
        next_latents: (E, C, H, W) fp32, the state that was drawn.
        mean: (E, C, H, W) fp32, the mean from which it was drawn.
        step: (E,) int64, the denoising step, from 0.
        log_prob: (E,) fp32, log density of `next_latents`, a mean over the latent's dimensions.
        row: (E,) int64, the row of its prompt in the batch.
    """

    latents: Tensor
    next_latents: Tensor
    mean: Tensor
    step: Tensor
    log_prob: Tensor
    row: Tensor

    def __len__(self) -> int:
        """Number of transitions, E."""
        return self.step.shape[0]

    def select(self, rows: Tensor | Sequence[int]) -> Transitions:
        """Picks transitions, in the order given.

        Args:
            rows: Row numbers (n,), or a mask (E,) bool.

        Returns:
            The picked transitions.
        """
        rows = torch.as_tensor(rows, device=self.step.device)
        rows = rows if rows.dtype == torch.bool else rows.long()
        return Transitions(
            **{field.name: getattr(self, field.name)[rows] for field in fields(self)}
        )

    def to(self, device: torch.device | str) -> Transitions:
        """Moves everything to a device.

        Args:
            device: Where to.

        Returns:
            The moved transitions.
        """
        return Transitions(
            **{field.name: getattr(self, field.name).to(device) for field in fields(self)}
        )

    @staticmethod
    def cat(parts: Sequence[Transitions]) -> Transitions:
        """Puts transitions one after another.

        Args:
            parts: One at least.

        Returns:
            All of them, in order.
        """
        return Transitions(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in parts])
                for field in fields(Transitions)
            }
        )


@dataclass(frozen=True, eq=False)
class RolloutTree:
    """The images of a rollout and the stochastic transitions that led to them.

    Attributes:
        images: (N, 3, H, W) in [0, 1], or None if the rollout was asked not to decode.
        latents: (N, C, H, W) fp32, the final latents.
        row: (N,) int64, the row of each image's prompt in the batch; the images of one prompt
            are neighbors.
        transitions: The E stochastic edges. A parent always comes before its children.
        parent: (E,) int64, the edge before each edge, -1 for the first one on its path.
        leaf_edge: (N,) int64, the last stochastic edge of each image, -1 if it has none.
        sigmas: (T + 1,) fp32, falling from (about) 1 to (about) 0, as `Policy.sigmas` gives them.
        num_nodes: Nodes whose velocity was predicted; model evaluations are this many times
            `Policy.num_evaluations_per_sample`.
    """

    images: Tensor | None
    latents: Tensor
    row: Tensor
    transitions: Transitions
    parent: Tensor
    leaf_edge: Tensor
    sigmas: Tensor
    num_nodes: int

    def __len__(self) -> int:
        """Number of images, N."""
        return self.row.shape[0]

    @staticmethod
    def cat(parts: Sequence[RolloutTree], num_prompts: Sequence[int]) -> RolloutTree:
        """Puts the trees of consecutive prompts of one batch side by side.

        Args:
            parts: One at least, all decoded or none, over the same steps.
            num_prompts: Prompts of each part.

        Returns:
            One tree, as one rollout over all prompts leaves it but for the order of its edges.
        """
        numbered = list(zip(_offsets(num_prompts), parts, strict=True))
        first_edge = _offsets([len(part.transitions) for part in parts])
        images = [part.images for part in parts if part.images is not None]
        return RolloutTree(
            images=torch.cat(images) if images else None,
            latents=torch.cat([part.latents for part in parts]),
            row=torch.cat([part.row + n for n, part in numbered]),
            transitions=Transitions.cat(
                [replace(part.transitions, row=part.transitions.row + n) for n, part in numbered]
            ),
            parent=_shifted([part.parent for part in parts], first_edge),
            leaf_edge=_shifted([part.leaf_edge for part in parts], first_edge),
            sigmas=parts[0].sigmas,
            num_nodes=sum(part.num_nodes for part in parts),
        )

    @property
    def depth(self) -> Tensor:
        """(E,) int64, the number of stochastic edges above each edge, 0 for the first ones."""
        depth = torch.zeros_like(self.parent)
        above = self.parent
        while bool((above >= 0).any()):
            depth += (above >= 0).long()
            above = torch.where(above >= 0, self.parent[above.clamp(min=0)], above)
        return depth

    def backup(self, values: Tensor) -> Tensor:
        """Gives every edge the mean value of the leaves below it.

        On a chain that is the value of its only leaf, exactly; on a tree it is the reward fusion of
        BranchGRPO (arXiv 2509.06040) with equal weights.

        Args:
            values: (N,) one value per image; NaN means missing and is left out of the means.

        Returns:
            (E,) in the type of `values`, NaN where all leaves below are missing.

        Raises:
            ValueError: If there is not one value per image.

        Examples:
            Edge 0 parts into edges 1 and 2, and edge 2 into 3 and 4. The images end in 1, 3 and 4:

            >>> parent, leaf_edge = torch.tensor([-1, 0, 0, 2, 2]), torch.tensor([1, 3, 4])
            >>> row, unused = torch.tensor([0, 0, 0]), torch.empty(0)
            >>> tree = RolloutTree(None, unused, row, unused, parent, leaf_edge, unused, 6)
            >>> tree.backup(torch.tensor([3.0, 1.0, 2.0]))
            tensor([2.0000, 3.0000, 1.5000, 1.0000, 2.0000])

            A missing value is in no mean, and leaves NaN where there is nothing else below:

            >>> tree.backup(torch.tensor([3.0, float("nan"), 2.0]))
            tensor([2.5000, 3.0000, 2.0000,    nan, 2.0000])
        """
        if values.shape != self.row.shape:
            raise ValueError(
                f"backup needs one value per image, shape ({len(self)},), "
                f"but was given shape {tuple(values.shape)}"
            )
        # On the CPU: a few thousand numbers in float64, which some accelerators lack.
        present = ~values.isnan().cpu()
        value, parent = values.cpu().double()[present], self.parent.cpu()
        edge = self.leaf_edge.cpu()[present]
        total = torch.zeros(len(parent), dtype=torch.float64, device="cpu")
        leaves = torch.zeros_like(total)
        while bool((edge >= 0).any()):  # all leaves climb together, one edge a turn
            on_tree = edge >= 0
            edge, value = edge[on_tree], value[on_tree]
            total.index_add_(0, edge, value)
            leaves.index_add_(0, edge, torch.ones_like(value))
            edge = parent[edge]
        fused = total / leaves  # 0 / 0 is the NaN that is promised
        return fused.to(values.dtype).to(self.parent.device)


def _offsets(counts: Sequence[int]) -> list[int]:
    """Where each part begins."""
    return [0, *accumulate(counts)][: len(counts)]


def _shifted(parts: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """Edge numbers of several trees in one count; -1 stays."""
    return torch.cat(
        [
            torch.where(part >= 0, part + offset, part)
            for part, offset in zip(parts, offsets, strict=True)
        ]
    )
