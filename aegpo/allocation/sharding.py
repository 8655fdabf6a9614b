"""The division of an iteration's prompts among ranks.

Every rank knows the whole batch and computes the same division by itself, without communication.
Groups stay whole, so an advantage never needs rewards of another rank.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def shard(group_sizes: Tensor, world_size: int, rank: int) -> Tensor:
    """The prompts that one rank works on.

    Groups are dealt largest first, each to the rank with the fewest images so far (the longest
    processing time rule), then exchanged between the fullest and the emptiest rank. Image totals
    come out equal for equal groups when B is a multiple of the number of ranks, and for a median
    split when B is a multiple of twice that number. Otherwise they may differ (see `shard_loads`)
    and the caller must weight what it averages by images, not by ranks.

    Args:
        group_sizes: Images per prompt, int64, at least 1, shape (B,).
        world_size: Number of ranks.
        rank: This rank, from 0.

    Returns:
        Rows of the batch in ascending order, int64, shape (prompts of this rank,); over all ranks
        every prompt appears exactly once. With fewer prompts than ranks the last ranks have none.

    Raises:
        ValueError: If `rank` does not exist or a group is empty.

    Examples:
        The group of 16 goes to rank 0 and both groups of 8 to rank 1. Now the ranks are equal, so
        the group of 4 goes to the first of them:

        >>> sizes = torch.tensor([8, 16, 4, 8])
        >>> [shard(sizes, world_size=2, rank=rank).tolist() for rank in (0, 1)]
        [[1, 2], [0, 3]]
        >>> shard_loads(sizes, world_size=2)
        tensor([20, 16])
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must lie between 0 and world_size - 1 = {world_size - 1}")
    return (_owners(group_sizes, world_size) == rank).nonzero().flatten()


def shard_loads(group_sizes: Tensor, world_size: int) -> Tensor:
    """Images that each rank works on.

    Args:
        group_sizes: Images per prompt, int64, at least 1, shape (B,).
        world_size: Number of ranks.

    Returns:
        Images per rank, int64, shape (world_size,).

    Raises:
        ValueError: If there is no rank or a group is empty.
    """
    owners = _owners(group_sizes, world_size)
    loads = torch.zeros(world_size, dtype=torch.int64, device="cpu")
    return loads.index_add(0, owners, group_sizes.cpu().long())


def _owners(group_sizes: Tensor, world_size: int) -> Tensor:
    """The rank of each prompt, int64, shape (B,)."""
    sizes: list[int] = group_sizes.tolist()
    if world_size < 1:
        raise ValueError(f"world_size={world_size} must be at least 1")
    if min(sizes) < 1:
        raise ValueError(f"group_sizes must be at least 1, but the smallest is {min(sizes)}")
    loads = [(0, rank) for rank in range(world_size)]  # a heap: thousands of prompts and ranks
    owners = [0] * len(sizes)
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        load, owners[row] = loads[0]
        heapq.heapreplace(loads, (load + sizes[row], owners[row]))
    _level(owners, sizes, world_size)
    return torch.tensor(owners, dtype=torch.int64, device="cpu")


def _level(owners: list[int], sizes: list[int], world_size: int) -> None:
    """Exchange prompts between the fullest and the emptiest rank while that levels them."""
    rows: list[list[int]] = [[] for _ in range(world_size)]
    for row, owner in enumerate(owners):
        rows[owner].append(row)
    loads = [sum(sizes[row] for row in own) for own in rows]
    while True:
        full, empty = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[full] - loads[empty]
        pairs = [
            (abs(gap - 2 * (sizes[one] - sizes[other])), one, other)
            for one in rows[full]
            for other in rows[empty]
            if 0 < sizes[one] - sizes[other] < gap
        ]
        if not pairs:
            return
        _, one, other = min(pairs)
        for row, source, target in ((one, full, empty), (other, empty, full)):
            rows[source].remove(row)
            rows[target].append(row)
            owners[row] = target
            loads[source] -= sizes[row]
            loads[target] += sizes[row]
