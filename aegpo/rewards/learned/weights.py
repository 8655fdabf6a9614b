"""Where a reward's weights come from: a local path or a hub id, and one line when neither works.

A constructor calls `check_file` or `check_folder`, which touch the disk alone; `setup` fetches.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from aegpo.utilities.hub import explained, is_hub_id


def check_file(source: str, filename: str, argument: str) -> None:
    """Raise unless `source` may name a file of weights.

    Args:
        source: What the user gave: a file, a folder with `filename` in it, or a hub id.
        filename: Name of the file in a folder or a repository.
        argument: The argument's name, for the message.

    Raises:
        FileNotFoundError: If it is none of these.
    """
    path = Path(source).expanduser()
    if path.is_file() or (path / filename).is_file():
        return
    if path.exists() or not is_hub_id(source):
        raise FileNotFoundError(
            f"{argument}={source!r} is neither a file, nor a folder with {filename}, nor a hub id; "
            f"give the path of {filename} or an id such as owner/name"
        )


def check_folder(source: str, filename: str, argument: str) -> None:
    """Raise unless `source` may name a saved model.

    Args:
        source: What the user gave: a folder with `filename` in it, or a hub id.
        filename: A file that such a folder has, "config.json" for a model of transformers.
        argument: The argument's name, for the message.

    Raises:
        FileNotFoundError: If it is neither.
    """
    path = Path(source).expanduser()
    if (path / filename).is_file():
        return
    if path.exists() or not is_hub_id(source):
        raise FileNotFoundError(
            f"{argument}={source!r} is neither a folder with {filename} nor a hub id; give the "
            "folder of a saved model or an id such as owner/name"
        )


def fetch_file(source: str, filename: str, argument: str) -> Path:
    """The file of weights, downloaded into the hub's cache when `source` is a hub id.

    Args:
        source: A file, a folder with `filename` in it, or a hub id.
        filename: Name of the file in a folder or a repository.
        argument: The argument's name, for the message.

    Returns:
        An existing file.

    Raises:
        FileNotFoundError: If it cannot be found or fetched.
        PermissionError: If the repository is gated.
    """
    check_file(source, filename, argument)
    path = Path(source).expanduser()
    if path.exists():
        return path / filename if path.is_dir() else path
    with explained(source, argument, filename):
        return Path(hf_hub_download(source, filename))


def load_pretrained(kind: Any, source: str, argument: str, **settings: Any) -> Any:
    """What `from_pretrained` of a class of transformers makes, complete or not at all.

    Args:
        kind: The class of a tokenizer, of a processor or of a model: the class itself, for
            what an AutoModel finds is not checked for missing weights.
        source: Hub id or folder; the hub is asked only if there is no such folder.
        argument: The argument's name, for the message.
        **settings: For `from_pretrained`.

    Returns:
        An object of that class.

    Raises:
        FileNotFoundError: If it cannot be found or fetched.
        PermissionError: If the repository is gated.
        ValueError: If it is of another kind: weights would be missing, and so random.
    """
    folder = Path(source).expanduser()
    settings["local_files_only"] = folder.exists()
    place = folder if folder.exists() else source
    with explained(source, argument):
        if not issubclass(kind, PreTrainedModel):
            return kind.from_pretrained(place, **settings)
        model, report = kind.from_pretrained(place, output_loading_info=True, **settings)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{len(missing)} weights of {kind.__name__} are absent: {missing[0]}")
    return model


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a checkpoint as tensors alone: no code of the file is run.

    Args:
        path: A safetensors file or one written by `torch.save`, of a state dict or of a dict that
            holds one under "state_dict".

    Returns:
        Tensors on the CPU by name.

    Raises:
        ValueError: If the file holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} is no checkpoint of tensors; download it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict; give the file that the authors published")
    return dict(content)


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies a checkpoint into a network that it has to fit name by name and shape by shape.

    Args:
        network: The network, changed in place.
        tensors: The checkpoint, under the network's names.
        source: What the user gave, for the message.

    Raises:
        ValueError: If names or shapes differ.
    """
    own = network.state_dict()
    differ = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(
            name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
        ),
    }
    found = [f"{len(names)} {how} ({names[0]}, ...)" for how, names in differ.items() if names]
    if found:
        raise ValueError(
            f"{source} does not fit the published network of {len(own)} tensors: "
            f"{', '.join(found)}; give the file that the authors published"
        )
    network.load_state_dict(tensors)
