"""Global allocation: how many images each prompt gets, and which rank draws them."""

from aegpo.allocation.allocators import (
    Allocator,
    MedianSplitAllocator,
    ProportionalAllocator,
    UniformAllocator,
)
from aegpo.allocation.prompt_rules import PromptRule, RunningSpread, SkipSilent, Visits
from aegpo.allocation.sharding import shard, shard_loads

__all__ = [
    "Allocator",
    "MedianSplitAllocator",
    "PromptRule",
    "ProportionalAllocator",
    "RunningSpread",
    "SkipSilent",
    "UniformAllocator",
    "Visits",
    "shard",
    "shard_loads",
]
