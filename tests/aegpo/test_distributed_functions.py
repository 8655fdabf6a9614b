"""The collectives, between two processes that hold different numbers of rows."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from forkserver import forkserver
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from aegpo.distributed import (
    all_gather_rows,
    all_reduce_gradients,
    all_reduce_max,
    all_reduce_sum,
    is_sharded,
    own_rows,
    world,
)

CPU = torch.device("cpu")


def in_two_processes(rank: int, store: str) -> None:
    """Every assertion runs on both ranks; one that fails fails the test."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    assert world() == (2, rank)

    assert own_rows(5).tolist() == ([1, 3] if rank else [0, 2, 4])
    assert own_rows(1).tolist() == ([] if rank else [0])
    assert own_rows(0).shape == (0,)  # arange refuses a start that lies beyond the end

    # Three rows here, one there; integers stay exact and columns stay together.
    rows = torch.tensor([[1, -1], [2, -2], [3, -3]]) if rank == 0 else torch.tensor([[2**40, 7]])
    everything, own = all_gather_rows(rows)
    assert everything.tolist() == [[1, -1], [2, -2], [3, -3], [2**40, 7]]
    assert everything.dtype == torch.int64
    assert torch.equal(everything[own], rows)

    # A rank without any row takes part, and NaN (a missing reward) arrives as NaN.
    scores = torch.empty(0) if rank == 0 else torch.tensor([0.5, float("nan")])
    everything, own = all_gather_rows(scores)
    assert len(everything[own]) == len(scores)
    assert everything[0] == 0.5 and bool(everything[1].isnan()) and len(everything) == 2

    # 2^24 + 1 does not fit into fp32: counts of evaluations must not be rounded.
    assert all_reduce_sum(2.0**24 if rank == 0 else 1.0, CPU) == 2**24 + 1

    # What one rank found holds for all; NaN would not.
    assert all_reduce_max(float(rank == 1), CPU) == 1 and all_reduce_max(-1.0 - rank, CPU) == -1

    # A forward of sharded weights is a collective, that of whole ones is not.
    layer = nn.Sequential(nn.Linear(2, 2, device=CPU))
    assert not is_sharded(layer)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    assert is_sharded(layer)

    # The second parameter has a gradient on rank 1 only, the third on none.
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3)), nn.Parameter(CELL)]
    parameters[0].grad = torch.full((2, 2), float(rank + 1))
    if rank == 1:
        parameters[1].grad = torch.tensor([1.0, 2.0, 3.0])
    all_reduce_gradients(parameters)
    sums = [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None]
    assert sums == [[[3.0, 3.0], [3.0, 3.0]], [1.0, 2.0, 3.0], [0.0]]
    dist.destroy_process_group()


CELL = torch.zeros(1)


def test_two_processes_with_ragged_rows(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    ranks = [forkserver().Process(target=in_two_processes, args=(rank, store)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def test_alone_they_change_nothing() -> None:
    assert world() == (1, 0)
    rows = torch.arange(6).reshape(3, 2)
    everything, own = all_gather_rows(rows)
    assert everything is rows and torch.equal(everything[own], rows)
    assert all_reduce_sum(2.5, CPU) == all_reduce_max(2.5, CPU) == 2.5
    assert not is_sharded(nn.Linear(1, 1))
    parameter = nn.Parameter(torch.zeros(2))
    all_reduce_gradients([parameter])
    assert parameter.grad is None
