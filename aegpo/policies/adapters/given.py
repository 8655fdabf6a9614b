"""A LoRA that somebody gives: found in a folder or on the hub, read by diffusers, and checked."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from huggingface_hub import HfApi, hf_hub_download
from safetensors import safe_open
from torch import Tensor

from aegpo.policies.adapters.factors import Factors, adapted_layers, blank_copy
from aegpo.utilities.hub import explained, is_hub_id

DEFAULT_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives such a file."""

_ADAPTER = "given"
_OTHER_KINDS = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.lokr_": "LoKr",
    r"\.hada_": "LoHa",
    r"\.diff(_b)?$": "changes of whole weights",
}


def find_lora(lora_from: str | Path, argument: str = "lora_from") -> Path:
    """Says which file is meant, and fetches it if it is on the hub.

    Args:
        lora_from: A .safetensors file, a folder with one (or with the file that diffusers writes),
            a hub id (owner/name), or one with a file in it (owner/name/file.safetensors).
        argument: Name of the argument, for messages.

    Returns:
        The file on this machine.

    Raises:
        FileNotFoundError: If it is none of these, or the hub is out of reach.
        PermissionError: If the repository is gated.
        ValueError: If there are several files, or it is none of safetensors.
    """
    path, given = Path(lora_from).expanduser(), f"{argument}={str(lora_from)!r}"
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{given} is no .safetensors file, and others are not read")
        return path
    if path.is_dir():
        if (path / "model_index.json").is_file():
            raise ValueError(f"{given} is a whole pipeline, no LoRA; give it as pretrained")
        return path / _the_one([file.name for file in path.glob("*.safetensors")], given)
    owner, _, name = str(lora_from).partition("/")
    name, _, file = name.partition("/")
    source = f"{owner}/{name}"
    if not is_hub_id(source) or (file and not file.endswith(".safetensors")):
        raise FileNotFoundError(
            f"{given} is no file, no folder and no hub id; give a .safetensors file, a folder with "
            "one, owner/name, or owner/name/file.safetensors"
        )
    with explained(source, argument, file or "LoRA file"):
        if not file:
            file = _the_one(HfApi().list_repo_files(source), given)
        return Path(hf_hub_download(source, file))


def _the_one(names: list[str], given: str) -> str:
    """The file among those of a folder that is the LoRA."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if DEFAULT_FILE in files:
        return DEFAULT_FILE
    if len(files) != 1:
        found = f"has {len(files)}: {', '.join(files[:4])}; name one" if files else "has none"
        raise ValueError(f"{given} has to hold one .safetensors file, and {found}")
    return files[0]


def fingerprint(file: Path) -> str:
    """Tells files apart, whatever their names.

    Args:
        file: The file.

    Returns:
        16 hexadecimal digits of its SHA-256.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def read_lora(pipeline: DiffusionPipeline, denoiser_name: str, file: Path) -> dict[str, Factors]:
    """Reads the adapters of a denoiser as diffusers reads them, whatever their layout.

    Diffusers translates names and scales, and puts the result on a network without weights, so that
    what does not fit is seen; the numbers are taken from the file, in its precision.

    Args:
        pipeline: The pipeline that they belong to; left as it is.
        denoiser_name: The part that is trained: "transformer" or "unet".
        file: From `find_lora`.

    Returns:
        Factors by the name of the layer, on the CPU.

    Raises:
        ValueError: If it is another kind of adapter, of other parts, or of another model.
    """
    given = f"lora_from={str(file)!r}"
    network = blank_copy(getattr(pipeline, denoiser_name))
    with explained(str(file), "lora_from"):
        with safe_open(file, "pt") as content:
            names = list(content.keys())
        for mark, kind in _OTHER_KINDS.items():
            if any(re.search(mark, name) for name in names):
                raise ValueError(f"it holds {kind}, and plain LoRA is read alone")
        state, alphas, metadata = _as_diffusers_reads(pipeline, denoiser_name, file)
        foreign = [name for name in state if not name.startswith(f"{denoiser_name}.")]
        if foreign:
            raise ValueError(
                f"it adapts more than the {denoiser_name} of a {type(pipeline).__name__}, or "
                f"another model: {foreign[0]}"
            )
        network.load_lora_adapter(
            dict(state),
            prefix=denoiser_name,
            network_alphas=alphas or None,
            metadata=metadata,
            adapter_name=_ADAPTER,
            low_cpu_mem_usage=True,
        )
    values = {name.removeprefix(f"{denoiser_name}."): tensor for name, tensor in state.items()}
    if not any(".lora_A." in name for name in values):
        values = convert_unet_state_dict_to_peft(values)
    found = {
        name: Factors(
            values.pop(f"{name}.lora_A.weight"),
            values.pop(f"{name}.lora_B.weight"),
            float(layer.scaling[_ADAPTER]),
        )
        for name, layer in adapted_layers(network, _ADAPTER)
        if f"{name}.lora_A.weight" in values
    }
    if values or not found:
        raise ValueError(
            f"{given} does not fit the {denoiser_name} of {pipeline.name_or_path}: {len(found)} of "
            f"its layers do, {next(iter(values), 'nothing')} has no place in it"
        )
    return found


def _as_diffusers_reads(
    pipeline: DiffusionPipeline, denoiser_name: str, file: Path
) -> tuple[dict[str, Tensor], Mapping[str, float], Any]:
    """Tensors by diffusers' names, alphas where they are apart, and the file's own settings."""
    read: Any = pipeline.lora_state_dict
    options: dict[str, Any] = {"use_safetensors": True, "return_lora_metadata": True}
    if "return_alphas" in inspect.signature(read).parameters:
        options["return_alphas"] = True
    if denoiser_name == "unet":
        options["unet_config"] = pipeline.unet.config
    state, *alphas, metadata = read(str(file), **options)
    return state, alphas[0] if alphas and alphas[0] else {}, metadata
