"""Tensors on disk that outlive the process, found by a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegpo.utilities.files import replacing


class TensorFolder:
    """A safetensors file per key; several processes may share a folder.

    A file's name is a hash of the key and of `settings`, so that what was made under others is
    never found. A file that cannot be read or written costs one line, not the run.

    Args:
        folder: Created if absent.
        settings: Everything that the tensors depend on beside their key.
        again: What follows where a file is unreadable, for instance "encoding again".

    Raises:
        OSError: If the folder cannot be created.
    """

    def __init__(self, folder: str | Path, settings: Sequence[object], again: str) -> None:
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = json.dumps([str(setting) for setting in settings])
        self.again = again

    def load_tensors(self, key: str, *needed: str) -> dict[str, Tensor] | None:
        """The tensors of a key, or None if there is no readable file that has the needed ones."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            parts: dict[str, Tensor] = load_file(path)
            for name in needed:
                parts[name]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"{path} is unreadable ({error}); {self.again}", stacklevel=3)
            return None
        return parts

    def save_tensors(self, key: str, parts: Mapping[str, Tensor]) -> None:
        """Write the tensors of a key; another process never reads half a file."""
        path = self.path(key)
        try:
            with replacing(path) as partial:
                save_file({name: part.contiguous() for name, part in parts.items()}, partial)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"{path} could not be written ({error})", stacklevel=3)

    def path(self, key: str) -> Path:
        """Where the tensors of a key are, or would be."""
        name = hashlib.blake2b(f"{self.settings}{key}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.safetensors"
