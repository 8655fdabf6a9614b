from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.allocation import MedianSplitAllocator
from aegpo.allocation.sharding import shard, shard_loads
from aegpo.entropy.reading import EntropyReading

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=24)


@settings(deadline=None)
@given(SIZES, st.data())
def test_every_prompt_once_and_none_idle_that_need_not(
    sizes: list[int], data: st.DataObject
) -> None:
    world = data.draw(st.integers(1, len(sizes) + 4))
    group_sizes = torch.tensor(sizes)
    shares = [shard(group_sizes, world, rank) for rank in range(world)]
    assert torch.cat(shares).sort().values.tolist() == list(range(len(sizes)))
    assert sum(len(share) > 0 for share in shares) == min(world, len(sizes))
    assert len(shares[0]) > 0  # the rank that draws the figures
    for share in shares:
        assert share.dtype == torch.int64
        assert share.tolist() == sorted(share.tolist())
    loads = shard_loads(group_sizes, world)
    assert loads.tolist() == [int(group_sizes[share].sum()) for share in shares]
    # The rule's bound: no rank is ahead of another by more than one group.
    assert int(loads.max() - loads.min()) <= max(sizes)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(2, 12), st.integers(0, 12), st.data())
def test_a_median_split_divides_equally(
    world: int, pairs: int, low: int, extra: int, data: st.DataObject
) -> None:
    num_prompts = 2 * world * pairs
    delta = torch.tensor(
        data.draw(st.lists(st.floats(0, 1), min_size=num_prompts, max_size=num_prompts))
    )
    allocator = MedianSplitAllocator(low, low + 2 * extra)
    sizes = allocator(EntropyReading(torch.zeros(num_prompts, 3), delta.float()), num_prompts)
    assert shard_loads(sizes, world).tolist() == [allocator.budget(num_prompts) // world] * world


def test_equal_groups_divide_equally() -> None:
    assert shard_loads(torch.full((12,), 5), 4).tolist() == [15] * 4


def test_largest_first_by_hand() -> None:
    # 16 -> rank 0, 12 -> 1, 9 -> 1 (12 < 16), 8 -> 0 (16 < 21), 2 -> 1 (21 < 24).
    sizes = torch.tensor([8, 12, 16, 2, 9])
    assert shard(sizes, 2, 0).tolist() == [0, 2]
    assert shard(sizes, 2, 1).tolist() == [1, 3, 4]
    assert shard_loads(sizes, 2).tolist() == [24, 23]


def test_one_rank_holds_everything() -> None:
    assert shard(torch.tensor([3, 9, 4]), 1, 0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "world", "rank", "message"),
    [
        ([4, 4], 2, 2, "rank=2"),
        ([4, 0], 2, 0, "at least 1"),
    ],
)
def test_refuses(sizes: list[int], world: int, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard(torch.tensor(sizes), world, rank)


def test_loads_refuse_no_rank() -> None:
    with pytest.raises(ValueError, match="world_size=0"):
        shard_loads(torch.tensor([4]), 0)
