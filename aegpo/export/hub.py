"""An export on the hub: asked about before the work, sent after it was checked."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from aegpo.utilities.hub import is_hub_id


def check_hub_target(repository: str) -> None:
    """Refuse a repository that cannot be pushed to; nothing is asked of the hub.

    Args:
        repository: Its id.

    Raises:
        ValueError: If it has no form of an id, or nobody is logged in.
    """
    if not is_hub_id(repository):
        raise ValueError(f"--push_to_hub {repository} is no hub id; give owner/name")
    if get_token() is None:
        raise ValueError(
            f"--push_to_hub {repository} needs an account: log in with `hf auth login`, or set "
            "HF_TOKEN"
        )


def push(folder: Path, repository: str, private: bool) -> str:
    """Send a folder, in one commit; the repository is made if it is not there.

    Args:
        folder: A published export.
        repository: Id of a model repository.
        private: Whether a new repository is for its owner alone; one that is there stays as it is.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If the hub does not take it; the folder is as it was.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload an export of AEGPO"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = shorten(str(error), 160, placeholder=" ...") or type(error).__name__
        raise ValueError(
            f"{folder} is written and checked, but was not pushed to {repository}: {reason}; try "
            f"again with `hf upload {repository} {folder}`"
        ) from error
    return str(sent.commit_url)
