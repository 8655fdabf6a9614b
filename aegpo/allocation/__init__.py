"""Global allocation: how many images each prompt gets, and which rank draws them."""

from aegpo.allocation.allocators import (
    Allocator,
    MedianSplitAllocator,
    ProportionalAllocator,
    UniformAllocator,
)
from aegpo.allocation.sharding import shard, shard_loads

__all__ = [
    "Allocator",
    "MedianSplitAllocator",
    "ProportionalAllocator",
    "UniformAllocator",
    "shard",
    "shard_loads",
]
