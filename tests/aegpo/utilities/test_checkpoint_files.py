"""Checkpoints stay whole inside the rename, and nothing in them is run unless that is asked for."""

from __future__ import annotations

import errno
import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import AsyncCheckpointIO
from safetensors.torch import save_file

from aegpo.utilities.checkpoint_files import CheckpointFiles
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.cli.trainer import AEGPOTrainer

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
VERSION = {"pytorch-lightning_version": "2.6.0"}


class Harmful:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of the folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("own", [False, True], ids=["the program's trainer", "RolloutCheckpoint"])
def test_every_checkpoint_survives_a_failure_inside_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, own: bool
) -> None:
    folder = tmp_path / "checkpoints"
    callbacks: list[L.Callback] = [RolloutCheckpoint(dirpath=str(folder))] if own else []
    kind = L.Trainer if own else AEGPOTrainer
    settings = QUIET | {"default_root_dir": tmp_path, "enable_checkpointing": own}
    trainer = kind(max_epochs=1, limit_train_batches=1, callbacks=callbacks, **settings)
    trainer.fit(BoringModel())
    last = folder / "last.ckpt"
    trainer.save_checkpoint(last)
    before = last.read_bytes()

    def full(*_: object) -> None:
        assert len(list(folder.iterdir())) == 2
        raise OSError("no space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="no space"):
        trainer.save_checkpoint(last)
    assert last.read_bytes() == before and [path.name for path in folder.iterdir()] == [last.name]


def test_a_users_own_way_of_writing_stays() -> None:
    own = AsyncCheckpointIO(CheckpointFiles())  # type: ignore[arg-type]
    assert AEGPOTrainer(plugins=[own], **QUIET).strategy.checkpoint_io is own


@pytest.mark.parametrize("remote", [False, True], ids=["file", "address"])
def test_code_in_a_checkpoint_is_run_only_if_that_is_typed(
    tmp_path: Path, address: str, remote: bool
) -> None:
    file, left = tmp_path / "foreign.ckpt", tmp_path / "left"
    torch.save({**VERSION, "state_dict": {}, "harm": Harmful(left)}, file)
    path = f"{address}/{file.name}" if remote else str(file)
    trainer = AEGPOTrainer(limit_val_batches=1, **QUIET)
    for weights_only in (None, True):
        with pytest.raises(ValueError, match=r"holds Python objects.*--weights_only false"):
            trainer.validate(
                BoringModel(), ckpt_path=path, weights_only=weights_only, verbose=False
            )
        assert not left.exists()
    CheckpointFiles().load_checkpoint(path, weights_only=False)
    assert left.exists()


def test_an_address_is_read_anew_each_time(tmp_path: Path, address: str) -> None:
    files = CheckpointFiles()
    for number in (1, 2):  # torch.hub would keep the first under its name
        files.save_checkpoint({**VERSION, "number": number}, tmp_path / "last.ckpt")
        assert files.load_checkpoint(f"{address}/last.ckpt") == {**VERSION, "number": number}
    files.remove_checkpoint(tmp_path / "last.ckpt")
    for path in (f"{address}/last.ckpt", tmp_path / "last.ckpt"):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
            files.load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"text", b"PK\x03\x04 damaged"])
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or no checkpoint") as refused:
        CheckpointFiles().load_checkpoint(tmp_path / "file.ckpt")
    assert "\n" not in str(refused.value)


def test_tensors_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    save_file({"lora_A.weight": torch.ones(2)}, tmp_path / "export.safetensors")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, holds in (("export.safetensors", "lora_A.weight"), ("list.ckpt", "a list")):
        with pytest.raises(ValueError, match=f"holds {holds}, and is no checkpoint of a training"):
            CheckpointFiles().load_checkpoint(tmp_path / name)


def test_a_disk_that_is_full_for_a_moment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write fails, and the closing finds room: torch then says "unexpected pos"."""
    import io

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() > 500:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "open", lambda self, mode: Full())
    with pytest.raises(OSError, match="No space left"):
        CheckpointFiles().save_checkpoint({"a": torch.zeros(1000)}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
