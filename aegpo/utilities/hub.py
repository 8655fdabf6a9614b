"""Hub ids, and one line for what goes wrong between here and the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

WEIGHT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
"""Ends of file names that hold weights: "models/hps.pt" is a path that was mistyped, no hub id."""


def is_hub_id(source: str) -> bool:
    """Whether a text has the form of a hub id, owner/name; nothing is looked up."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)) and not source.endswith(
        WEIGHT_SUFFIXES
    )


def cached_revision(source: str) -> str:
    """Say which upload of a repository this machine has; nothing is asked of the hub.

    Args:
        source: Hub id of what was loaded before.

    Returns:
        The commit.

    Raises:
        LocalEntryNotFoundError: If it is not in the hub's cache.
    """
    return Path(snapshot_download(source, local_files_only=True)).name


@contextmanager
def explained(source: str, argument: str, wanted: str = "model") -> Iterator[None]:
    """Says in one line why the hub, or a library that asks it, did not give a model.

    Args:
        source: Hub id or folder.
        argument: Name of the argument that accepts a local path instead.
        wanted: What is looked for in the repository, a file's name if there is one.

    Raises:
        FileNotFoundError: If the repository, the file or the network is missing.
        PermissionError: If the repository is gated.
        ValueError: If something is there, but unreadable.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        chain = list(_causes(error))
        local = f"give a local path as {argument}"

        def has(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in chain)

        if has(GatedRepoError):  # a kind of RepositoryNotFoundError
            raise PermissionError(
                f"{argument}={source!r} is gated: accept its terms at https://huggingface.co/"
                f"{source} and log in with `hf auth login`, or {local}"
            ) from error
        if has(RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{argument}={source!r} is no folder here and no public repository on the hub; "
                f"check the name, log in with `hf auth login` if it is private, or {local}"
            ) from error
        if has(LocalEntryNotFoundError, ConnectionError, TimeoutError):
            raise FileNotFoundError(
                f"{argument}={source!r} is not in the hub's cache and the hub is out of reach; "
                f"connect (and unset HF_HUB_OFFLINE), or {local}"
            ) from error
        if has(EntryNotFoundError):
            raise FileNotFoundError(
                f"{argument}={source!r} is on the hub, but has no {wanted}; check the name, or "
                f"{local}"
            ) from error
        reason = shorten(str(error), 200, placeholder=" ...") or type(error).__name__
        kind = FileNotFoundError if has(FileNotFoundError) else ValueError
        raise kind(f"{argument}={source!r} could not be read: {reason}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error itself and what led to it, by cause or, where none is named, by context."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
