"""Micro-batches and gradient checkpointing chosen by memory, once; by ranks: test_fsdp2.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fitting_case import train

from aegpo.free_memory import free_bytes
from lightning_modules.training.fitting import Choice, Kept, choose

PLENTY, TIGHT = 1e12, 1.0


@pytest.mark.parametrize(
    ("room", "samples", "fixed", "cache", "expected"),
    [
        (1200.0, 96, None, math.inf, Choice(9, False)),  # 100 bytes and 90 of each fit into 1000
        (1200.0, 8, None, math.inf, Choice(8, False)),
        (1200.0, 10, None, math.inf, Choice(5, False)),  # two of 5, not 9 and 1
        (1200.0, 96, None, 450.0, Choice(3, False)),
        (240.0, 96, None, math.inf, Choice(10, True)),  # one sample fits, two do with checkpoints
        (240.0, 96, 1, math.inf, Choice(1, False)),
        (240.0, 96, 4, math.inf, Choice(4, True)),
        (0.0, 96, None, math.inf, Choice(1, True)),
        (0.0, 1, 4, math.inf, Choice(4, True)),
    ],
)
def test_no_checkpoints_where_it_fits_and_as_many_samples_as_do(
    room: float, samples: int, fixed: int | None, cache: float, expected: Choice
) -> None:
    kept = {False: Kept(100.0, 100.0), True: Kept(100.0, 10.0)}
    assert choose(kept, room, samples, fixed, cache) == expected


def test_what_autos_choose_changes_no_number(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    size, twice, logged, weights = train(tiny_sd3_folder, tmp_path, [PLENTY])
    assert (size, twice) == (12, False)  # all 12 samples of an update
    assert train(tiny_sd3_folder, tmp_path, [TIGHT])[:2] == (1, True)
    size, twice, plain, same = train(
        tiny_sd3_folder, tmp_path, micro_batch_size=12, gradient_checkpointing=False
    )
    assert (size, twice) == (12, False)
    timeless = [name for name in plain if not name.startswith("seconds/")]
    assert {name: logged[name] for name in timeless} == {name: plain[name] for name in timeless}
    assert all(torch.equal(weights[name], same[name]) for name in same)


def test_a_resumed_run_goes_on_with_its_choice(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    assert train(tiny_sd3_folder, tmp_path, [TIGHT])[:2] == (1, True)
    last = str(tmp_path / "last.ckpt")
    assert train(tiny_sd3_folder, tmp_path, [PLENTY], last)[:2] == (1, True)
    given = {"micro_batch_size": 5, "gradient_checkpointing": False}
    assert train(tiny_sd3_folder, tmp_path, [PLENTY], last, **given)[:2] == (5, False)


def test_free_memory_is_what_the_computer_says() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**60
