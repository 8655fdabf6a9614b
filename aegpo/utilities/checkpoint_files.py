"""Checkpoints on disk: written whole or not at all, and read without running what is in them."""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from aegpo.utilities.files import remove_leftovers, replacing

_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError),
    *(KeyError, ValueError, IndexError, AttributeError, TypeError),
)
"""What torch.load raises on files that are cut, damaged, or made to be."""


class CheckpointFiles:
    """What a trainer writes and reads checkpoints with, in the place of Lightning's own.

    Lightning's writes to the system's temporary folder and moves the file over. Where that is
    another file system, as on most clusters, the move copies into the old file, and a kill or a
    full disk in there destroys the only checkpoint. For an address it unpickles whatever it gets.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, beside the old one until it is whole.

        Args:
            checkpoint: Its content.
            path: A file, or an address that fsspec knows.
            storage_options: Not used.

        Raises:
            OSError: If it cannot be written; a file that was there is what it was.
        """
        del storage_options
        system, place = url_to_fs(str(path))
        if not isinstance(system, LocalFileSystem):  # object stores show whole objects only
            content = io.BytesIO()
            torch.save(checkpoint, content)
            system.makedirs(system._parent(place), exist_ok=True)
            system.pipe_file(place, content.getvalue())
            return
        remove_leftovers(place)
        with replacing(place) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch closes its archive after a failed write, and complains of that instead.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
        lazy: bool = False,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: A file, or an address that fsspec knows; nothing that was downloaded is kept.
            map_location: As for `torch.load`; None puts all on the CPU.
            weights_only: False unpickles objects, which runs the code in the file; None is True.
            lazy: Whether tensors of a local file are read only where they are used.

        Returns:
            Its content.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no checkpoint, or holds objects that may not be unpickled.
        """
        system, place = url_to_fs(str(path))
        if not system.isfile(place):
            raise FileNotFoundError(f"there is no checkpoint {path}; give the file of one")
        safe = weights_only is not False
        local = isinstance(system, LocalFileSystem)
        source: Any = place if local else io.BytesIO(system.cat_file(place))
        try:
            content: dict[str, Any] = torch.load(
                source,
                map_location=map_location or "cpu",
                weights_only=safe,
                mmap=local and lazy,
            )
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a cut file
                raise
            if safe and "GLOBAL" in str(error):  # the name of a class or a function
                raise ValueError(
                    f"{path} holds Python objects, and unpickling them runs the code in them; give "
                    "a checkpoint of aegpo fit, or --weights_only false if you trust its origin"
                ) from error
            raise ValueError(
                f"{path} is damaged or no checkpoint (torch.load cannot read it); give a "
                "checkpoint that aegpo fit wrote"
            ) from error
        # With a `start_method` Lightning hands the weights back in a file of bare tensors.
        if Path(place).name == ".temp.ckpt":
            return content
        if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
            names = ", ".join(map(str, list(content)[:3])) if isinstance(content, dict) else ""
            raise ValueError(
                f"{path} holds {names or f'a {type(content).__name__}'}, and is no checkpoint of a "
                "training; give one that aegpo fit wrote, such as its last.ckpt"
            )
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that is not kept any more.

        Args:
            path: A file or a folder, or an address that fsspec knows.
        """
        system, place = url_to_fs(str(path))
        if system.exists(place):
            system.rm(place, recursive=True)

    def teardown(self) -> None:
        """Nothing is held."""


def write_whole_checkpoints(strategy: Any) -> None:
    """Have a trainer use `CheckpointFiles`, unless it was given something else of its own.

    Args:
        strategy: The trainer's.
    """
    if type(strategy.checkpoint_io).__name__ == "TorchCheckpointIO":
        strategy.checkpoint_io = CheckpointFiles()
