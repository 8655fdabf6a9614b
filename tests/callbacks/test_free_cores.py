"""Threads follow the free cores, and are put back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.cores import CoreWatch
from callbacks.free_cores import FreeCores


class Threads(L.Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append(torch.get_num_threads())


class TwoThreads(L.Callback):
    """What the training starts with, and not before: two threads on a busy machine take long."""

    def on_train_start(self, *_: Any) -> None:
        torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_follow_the_free_cores_and_are_put_back(
    tiny_sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[float | None] = [0.3, None, 9.0, 1.4, 2.6]
    monkeypatch.setattr(CoreWatch, "free", lambda _: free.pop(0))
    threads = Threads()
    callbacks = [TwoThreads(), FreeCores(every_n_seconds=1e-9), threads]
    data = tiny_data(tmp_path, val_images=2)
    tiny_trainer(tmp_path, callbacks).fit(tiny_module(tiny_sd3_folder), data)
    # At least one, at most those of the start; what is not known changes nothing.
    assert threads.seen == [1, 1, 2, 1]
    assert torch.get_num_threads() == 2 and free == []

    free[:] = [1.0, 1.0, 1.0]
    torch.set_num_threads(1)
    with pytest.raises(ZeroDivisionError):
        broken = [TwoThreads(), FreeCores(every_n_seconds=1e-9), Broken()]
        tiny_trainer(tmp_path, broken).fit(tiny_module(tiny_sd3_folder), tiny_data(tmp_path))
    assert torch.get_num_threads() == 2


class Broken(L.Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        raise ZeroDivisionError


def test_it_looks_no_more_often_than_it_is_told(
    tiny_sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(CoreWatch, "free", lambda _: looks.append(1))
    callbacks = [FreeCores(every_n_seconds=1e6)]
    tiny_trainer(tmp_path, callbacks).fit(tiny_module(tiny_sd3_folder), tiny_data(tmp_path))
    assert looks == [1]
    with pytest.raises(ValueError, match="every_n_seconds=0 must be above 0"):
        FreeCores(every_n_seconds=0)
