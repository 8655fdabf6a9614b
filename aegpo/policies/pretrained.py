"""Where a pipeline comes from (hub id, folder, this package), checked before it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

BUNDLED = {"shapes": Path(__file__).parent.parent / "shapes" / "base"}
"""Pipelines that come with the package, by the name that stands for them."""


def find_pipeline(pretrained: str) -> str | Path:
    """Says what a `pretrained` argument means.

    Args:
        pretrained: A bundled name ("shapes"), a folder, or a hub id ("owner/name").

    Returns:
        An existing folder as a Path, or a hub id as a str.

    Raises:
        FileNotFoundError: If it is none of these.
    """
    if pretrained in BUNDLED:
        folder = BUNDLED[pretrained]
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"the bundled pipeline {pretrained!r} is not in this installation ({folder}); "
                "train it with configs/shapes_vae.yaml and configs/shapes_pretrain.yaml, or give "
                "another folder or hub id"
            )
        return folder
    folder = Path(pretrained).expanduser()
    if folder.exists():
        return folder
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", pretrained):
        return pretrained
    raise FileNotFoundError(
        f"pretrained={pretrained!r} is neither a folder nor a hub id; give a folder with a "
        f"model_index.json, an id such as owner/name, or one of {', '.join(sorted(BUNDLED))}"
    )


def read_model_index(source: str | Path, pipeline: type[DiffusionPipeline]) -> dict[str, Any]:
    """Reads which parts a pipeline has, and refuses another kind of pipeline.

    Args:
        source: Folder or hub id, from `find_pipeline`.
        pipeline: The class that the caller can drive.

    Returns:
        The content of model_index.json; the value of a part that is absent is [None, None].

    Raises:
        FileNotFoundError: If there is no model_index.json, or a part's folder is missing.
        ValueError: If the file is unreadable or names another class.
    """
    accepted = f"give the folder or hub id of a saved {pipeline.__name__}"
    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise FileNotFoundError(f"{source} is no pipeline: it has no model_index.json; {accepted}")
    try:
        index: dict[str, Any] = pipeline.load_config(
            source, local_files_only=isinstance(source, Path)
        )
    except OSError as error:
        if isinstance(source, Path):
            raise ValueError(f"{source}/model_index.json is not valid JSON; {accepted}") from error
        raise FileNotFoundError(
            f"{source!r} is no folder here, and its model_index.json could not be fetched from "
            f"the hub; {accepted}, or check the network and your access"
        ) from error
    if index.get("_class_name") != pipeline.__name__:
        raise ValueError(f"{source} is a {index.get('_class_name')}; {accepted}")
    if isinstance(source, Path):
        parts = [name for name, part in index.items() if isinstance(part, list) and any(part)]
        absent = [name for name in parts if not (source / name).is_dir()]
        if absent:
            raise FileNotFoundError(f"{source} lacks the folders {absent}; {accepted}")
    return index
